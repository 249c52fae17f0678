// Sizes, quantities and times as people read them. Pure, but for the clock that makes ages move.

import { readonly, shallowRef } from 'vue'
import { locale } from '@/i18n'
import { zone } from '@/ui/prefs'

const UNITS: Record<string, number> = {
  '': 1, m: 1e-3, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18,
  Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40, Pi: 2 ** 50, Ei: 2 ** 60,
}

/** A Kubernetes quantity as a number; NaN if it is none. */
export function quantity(text: string | number | undefined): number {
  const match = /^([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)$/.exec(String(text ?? '').trim())
  const unit = UNITS[match?.[2] ?? '?']
  return match && unit !== undefined ? Number(match[1]) * unit : NaN
}

/** Bytes with a binary unit and at most three digits. */
export function bytes(n: number | undefined): string {
  if (n === undefined || !Number.isFinite(n)) return ''
  const names = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let at = 0
  while (n >= 1024 && at < names.length - 1) {
    n /= 1024
    at++
  }
  const digits = n >= 100 || at === 0 ? 0 : n >= 10 ? 1 : 2
  return `${numbers(locale.value, digits).format(n)} ${names[at]}`
}

/** Formats are kept: making one takes longer than a row of a table. */
const formats = new Map<string, Intl.NumberFormat>()
function numbers(language: string, digits: number): Intl.NumberFormat {
  const key = `${language} ${digits}`
  const there = formats.get(key) ?? new Intl.NumberFormat(language, { maximumFractionDigits: digits })
  formats.set(key, there)
  return there
}

const clock = shallowRef(Date.now())
setInterval(() => (clock.value = Date.now()), 10_000)
export const now = readonly(clock)

/** How long ago, in one unit: 5 s, 3 min, 2 h, 4 d. */
export function age(time: string | undefined, at = clock.value): string {
  if (!time) return ''
  const s = Math.max(0, Math.floor((at - Date.parse(time)) / 1000))
  if (s < 60) return `${s} s`
  if (s < 3600) return `${Math.floor(s / 60)} min`
  if (s < 86_400) return `${Math.floor(s / 3600)} h`
  return `${Math.floor(s / 86_400)} d`
}

/** In the time zone that was chosen, or the browser's where it does not know that one. */
function zoned(options: Intl.DateTimeFormatOptions, at: Date): string {
  try {
    return new Intl.DateTimeFormat(locale.value, { ...options, timeZone: zone.value || undefined }).format(at)
  } catch {
    return new Intl.DateTimeFormat(locale.value, options).format(at)
  }
}

/** A moment in the time zone that was chosen, which is named. */
export function moment(time: string | number | undefined): string {
  if (time === undefined || time === '') return ''
  return zoned({ dateStyle: 'medium', timeStyle: 'long' }, new Date(time))
}

/** A moment on an axis that is so long, in ms: the time, with the date where a day has not room for it. */
export const tick = (time: number, span: number): string =>
  zoned(span > 86_400_000 ? { month: 'short', day: 'numeric', hour: 'numeric', minute: '2-digit' } : { hour: 'numeric', minute: '2-digit' }, new Date(time))

/** A quantity of memory or storage as manifests have it. */
export const gibibytes = (gi: number): string => (Number.isInteger(gi) ? `${gi}Gi` : `${Math.round(gi * 1024)}Mi`)

/** A number with at most so many digits after the point. */
export const round = (n: number, digits = 1): string => new Intl.NumberFormat(locale.value, { maximumFractionDigits: digits }).format(n)
