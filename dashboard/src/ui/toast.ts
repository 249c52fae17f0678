// Short notices at the edge of the page.
import { shallowReactive } from 'vue'
export interface Notice { id: number; text: string; bad: boolean }
export const notices = shallowReactive<Notice[]>([])
let last = 0
export function notify(text: string, bad = false): void {
  const notice = { id: ++last, text, bad }
  notices.push(notice)
  if (notices.length > 5) notices.shift()
  setTimeout(() => dismiss(notice.id), bad ? 12_000 : 4_000)
}
export function dismiss(id: number): void {
  const at = notices.findIndex((n) => n.id === id)
  if (at >= 0) notices.splice(at, 1)
}
export const why = (error: unknown): string => (error instanceof Error ? error.message : String(error))
