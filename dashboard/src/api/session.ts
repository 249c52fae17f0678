// Who is signed in. The session itself is a cookie that scripts cannot read.

import { shallowReactive } from 'vue'
import { loadAccess } from './access'
import { json, onSignedOut } from './http'

interface Answer {
  user: { name: string; groups: string[] } | null
  setup?: boolean
  codeNeeded?: boolean
  namespaces?: string[]
}

export const session = shallowReactive<{ known: boolean; user: string; groups: string[]; setup: boolean; codeNeeded: boolean; namespaces: string[] }>({
  known: false,
  user: '',
  groups: [],
  /** Where the user has roles; for those who may not list namespaces. */
  namespaces: [],
  setup: false,
  codeNeeded: false,
})

async function take(answer: Answer): Promise<void> {
  session.groups = answer.user?.groups ?? []
  session.namespaces = answer.namespaces ?? []
  if (answer.user) await loadAccess()
  session.user = answer.user?.name ?? ''
  session.setup = answer.setup ?? false
  session.codeNeeded = answer.codeNeeded ?? false
  session.known = true
}

onSignedOut.handler = () => {
  session.user = ''
}

export const refresh = async (): Promise<void> => take(await json<Answer>('v1/auth/session'))

export const signIn = async (username: string, password: string): Promise<void> => {
  await json('v1/auth/login', { method: 'POST', body: { username, password } })
  await refresh()
}

export const changePassword = async (current: string, password: string): Promise<void> => {
  await json<Answer>('v1/auth/password', { method: 'POST', body: { current, password } })
}

/** The hash of a password, for the Secret of a local user. */
export const hashOf = async (password: string): Promise<string> =>
  (await json<{ hash: string }>('v1/auth/hash', { method: 'POST', body: { password } })).hash

/** A token for programs, with the rights of whoever is signed in. */
export const ownToken = (expirationSeconds: number): Promise<{ token: string; expirationTimestamp: string }> =>
  json('v1/auth/token', { method: 'POST', body: { expirationSeconds } })

/** So often at most the server hears that somebody is at the page, in ms. */
const SEEN_MS = 300_000
let seen = Date.now()
/** Watches keep no session open; people do, even if they only look around. */
export function stayAwake(): void {
  if (!session.user || Date.now() - seen < SEEN_MS) return
  seen = Date.now()
  void json('v1/auth/session').catch(() => {})
}

export const setUp = async (password: string, code: string): Promise<void> => {
  await json('v1/auth/setup', { method: 'POST', body: { password, code } })
  await refresh()
}

export const signOut = async (everywhere = false): Promise<void> => {
  await json<Answer>(`v1/auth/logout${everywhere ? '?everywhere=true' : ''}`, { method: 'POST', body: {} })
  session.user = ''
}
