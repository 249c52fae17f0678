// Who is signed in. The session itself is a cookie that scripts cannot read.

import { shallowReactive } from 'vue'
import { json, onSignedOut } from './http'

interface Answer {
  user: { name: string; groups: string[] } | null
  setup?: boolean
  codeNeeded?: boolean
}

export const session = shallowReactive<{ known: boolean; user: string; setup: boolean; codeNeeded: boolean }>({
  known: false,
  user: '',
  setup: false,
  codeNeeded: false,
})

function take(answer: Answer): void {
  session.user = answer.user?.name ?? ''
  session.setup = answer.setup ?? false
  session.codeNeeded = answer.codeNeeded ?? false
  session.known = true
}

onSignedOut.handler = () => {
  session.user = ''
}

export const refresh = async (): Promise<void> => take(await json<Answer>('v1/auth/session'))

export const signIn = async (username: string, password: string): Promise<void> =>
  take(await json<Answer>('v1/auth/login', { method: 'POST', body: { username, password } }))

export const setUp = async (password: string, code: string): Promise<void> =>
  take(await json<Answer>('v1/auth/setup', { method: 'POST', body: { password, code } }))

export const signOut = async (everywhere = false): Promise<void> => {
  await json<Answer>(`v1/auth/logout${everywhere ? '?everywhere=true' : ''}`, { method: 'POST', body: {} })
  session.user = ''
}
