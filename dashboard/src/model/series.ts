// Numbers over time: what Prometheus' text says, rates of counters, and the shapes that charts draw. Pure.

/** When, in ms, and how much. */
export type Sample = [number, number]

/** Samples of one series that are kept: an hour at one in ten seconds. */
export const KEPT = 360

export interface Reading { name: string; labels: Record<string, string>; value: number }

/** Reads the lines of Prometheus' text format whose names are wanted. */
export function readMetrics(text: string, wanted: (name: string) => boolean): Reading[] {
  const out: Reading[] = []
  let from = 0
  while (from < text.length) {
    let to = text.indexOf('\n', from)
    if (to < 0) to = text.length
    const line = text.slice(from, to)
    from = to + 1
    if (!line || line[0] === '#') continue
    const end = /[{ ]/.exec(line)?.index ?? -1
    if (end < 0 || !wanted(line.slice(0, end))) continue
    const labels: Record<string, string> = {}
    let rest = line.slice(end)
    if (rest[0] === '{') {
      const close = rest.lastIndexOf('}')
      for (const m of rest.slice(1, close).matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g)) {
        labels[m[1]!] = m[2]!.replace(/\\(.)/g, (_, c: string) => (c === 'n' ? '\n' : c))
      }
      rest = rest.slice(close + 1)
    }
    const value = Number(rest.trim().split(' ')[0])
    if (Number.isFinite(value)) out.push({ name: line.slice(0, end), labels, value })
  }
  return out
}

/** Adds a sample; the oldest make room. */
export function push(samples: Sample[], at: number, value: number): void {
  samples.push([at, value])
  if (samples.length > KEPT) samples.splice(0, samples.length - KEPT)
}

/** A counter as change per second. Where it was set back, that step is left out. */
export function rate(samples: Sample[]): Sample[] {
  const out: Sample[] = []
  for (let n = 1; n < samples.length; n++) {
    const [[t0, v0], [t1, v1]] = [samples[n - 1]!, samples[n]!]
    if (t1 > t0 && v1 >= v0) out.push([t1, ((v1 - v0) * 1000) / (t1 - t0)])
  }
  return out
}

/** The least round number that is not below. */
export function niceMax(value: number): number {
  if (!(value > 0)) return 1
  const unit = 10 ** Math.floor(Math.log10(value))
  return [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= value) ?? value
}

type Scale = (n: number) => number
const point = (x: number, y: number): string => `${Math.round(x * 10) / 10} ${Math.round(y * 10) / 10}`

export const linePath = (samples: Sample[], x: Scale, y: Scale): string =>
  samples.length < 2 ? '' : `M${samples.map(([at, v]) => point(x(at), y(v))).join('L')}`

export function areaPath(samples: Sample[], x: Scale, y: Scale, ground: number): string {
  const line = linePath(samples, x, y)
  return line && `${line}L${point(x(samples.at(-1)![0]), ground)}L${point(x(samples[0]![0]), ground)}Z`
}

/** Several series as one, moment by moment. */
export function sum(all: Sample[][]): Sample[] {
  const at = new Map<number, number>()
  for (const samples of all) for (const [time, value] of samples) at.set(time, (at.get(time) ?? 0) + value)
  return [...at].sort(([a], [b]) => a - b)
}
