// A kubeconfig for a token. Pure.
import { stringify } from 'yaml'

/** Text as base64, whatever its letters. */
export const base64 = (text: string): string => btoa(String.fromCharCode(...new TextEncoder().encode(text)))

export function kubeconfig(server: string, ca: string, user: string, token: string, namespace: string): string {
  const cluster = { server: server.replace(/\/$/, ''), ...(ca ? { 'certificate-authority-data': base64(ca) } : {}) }
  return stringify({
    apiVersion: 'v1', kind: 'Config', 'current-context': user,
    clusters: [{ name: 'sheaf', cluster }],
    users: [{ name: user, user: { token } }],
    contexts: [{ name: user, context: { cluster: 'sheaf', user, namespace } }],
  }, { lineWidth: 0 })
}
