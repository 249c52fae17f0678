// What nodes and machines used over time: the server keeps it, and tells it to whoever may see the object. Asked again while somebody looks.

import { onScopeDispose, shallowReactive, watch } from 'vue'
import { seriesOf, type Measure, type Told } from '@/model/series'
import { ApiError, json } from './http'

/** The server measures this often; a little later there is something new, in ms. */
const EVERY_MS = 30_000
/** After a failure. */
const AGAIN_MS = 5000

export interface Usage { until: number; series: Partial<Record<Measure, ReturnType<typeof seriesOf>>>; known: boolean; error: string; forbidden: boolean }

/** Follows the use of what is at a path below v1/usage, the last so many seconds of it, for as long as the component lives. */
export function usage(path: () => string, seconds: () => number): Usage {
  const state = shallowReactive<Usage>({ until: Date.now(), series: {}, known: false, error: '', forbidden: false })
  let timer: ReturnType<typeof setTimeout> | undefined
  let turn = 0
  async function read(): Promise<void> {
    clearTimeout(timer)
    const mine = ++turn
    if (!path()) return
    let wait = EVERY_MS
    try {
      const told = await json<Told>(`v1/usage/${path()}?seconds=${seconds()}`, { idle: true })
      // Something else is looked at by now.
      if (mine !== turn) return
      const series = Object.fromEntries((['cpu', 'memory', 'read', 'written', 'received', 'sent'] as const).map((m) => [m, seriesOf(told, m)]))
      Object.assign(state, { series, until: told.endSeconds * 1000, known: true, error: '', forbidden: false })
    } catch (error) {
      if (mine !== turn) return
      const forbidden = error instanceof ApiError && error.code === 403
      Object.assign(state, { error: error instanceof Error ? error.message : String(error), forbidden, known: true })
      wait = forbidden ? 600_000 : AGAIN_MS
    }
    timer = setTimeout(() => void read(), wait)
  }
  watch(() => `${path()} ${seconds()}`, () => void read(), { immediate: true })
  onScopeDispose(() => {
    turn++
    clearTimeout(timer)
  })
  return state
}
