// A certificate for the test's own proxy, made by openssl.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export function make() {
  const dir = mkdtempSync(join(tmpdir(), 'sheaf-proxy-'))
  try {
    execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '1', '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', join(dir, 'key'), '-out', join(dir, 'cert')], { stdio: 'ignore' })
    return { key: readFileSync(join(dir, 'key')), cert: readFileSync(join(dir, 'cert')) }
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}
