// What the cluster measures (/metrics), read now and then while somebody looks, and kept for an hour: a tab's memory has a bound.

import { onScopeDispose, shallowReactive } from 'vue'
import { push, readMetrics, type Reading, type Sample } from '@/model/series'
import { ApiError, send } from './http'

/** Between two readings, in ms; seldom where the answer is large. */
const EVERY_MS = 10_000
const SELDOM_MS = 60_000
const LARGE = 4 << 20
/** Series that are kept at most; those that are not measured any more go first. */
const SERIES_MAX = 60_000

interface Kept { samples: Sample[]; labels: Record<string, string>; name: string; seen: number }
const series = new Map<string, Kept>()
export const metrics = shallowReactive<{ at: number; error: string; forbidden: boolean }>({ at: 0, error: '', forbidden: false })
let lookers = 0
let timer: ReturnType<typeof setTimeout> | undefined
let under = false

const wanted = (name: string): boolean => name.startsWith('kubevirt_vmi_') || name.startsWith('sheaf_node_') || name.startsWith('node_')

function take(readings: Reading[], at: number): void {
  for (const r of readings) {
    const id = `${r.name} ${Object.values(r.labels).join(' ')}`
    let kept = series.get(id)
    if (!kept) {
      if (series.size >= SERIES_MAX) continue
      kept = { samples: [], labels: r.labels, name: r.name, seen: at }
      series.set(id, kept)
    }
    kept.seen = at
    push(kept.samples, at, r.value)
  }
  for (const [id, kept] of series) if (at - kept.seen > SELDOM_MS * 3) series.delete(id)
}

async function read(): Promise<void> {
  if (under) return
  under = true
  let wait = EVERY_MS
  try {
    const text = await (await send('metrics', { accept: 'text/plain', idle: true })).text()
    if (text.length > LARGE) wait = SELDOM_MS
    const at = Date.now()
    take(readMetrics(text, wanted), at)
    Object.assign(metrics, { at, error: '', forbidden: false })
  } catch (error) {
    metrics.error = error instanceof Error ? error.message : String(error)
    metrics.forbidden = error instanceof ApiError && error.code === 403
    if (metrics.forbidden) wait = SELDOM_MS * 10
  } finally {
    under = false
    clearTimeout(timer)
    if (lookers) timer = setTimeout(() => void read(), wait)
  }
}

/** Measures for as long as the component lives. */
export function measuring(): typeof metrics {
  if (++lookers === 1) void read()
  onScopeDispose(() => {
    if (--lookers === 0) clearTimeout(timer)
  })
  return metrics
}

/** The series of a name whose labels are as given. */
export const seriesOf = (name: string, labels: Record<string, string> = {}): Kept[] =>
  [...series.values()].filter((k) => k.name === name && Object.entries(labels).every(([l, v]) => k.labels[l] === v))
