// Numbers over time, as the server tells them, and the shapes that charts draw. Pure.

/** When, in ms, and how much; nothing where nobody knows. */
export type Sample = [number, number | null]

export type Measure = 'cpu' | 'memory' | 'read' | 'written' | 'received' | 'sent'
/** Lists that end at the same time, with one number for each step. */
export type Told = { stepSeconds: number; endSeconds: number } & Record<Measure, (number | null)[]>

/** The samples of one measure: each at the end of its step. */
export const seriesOf = (told: Told, measure: Measure): Sample[] =>
  told[measure].map((value, n, all): Sample => [(told.endSeconds - (all.length - 1 - n) * told.stepSeconds) * 1000, value])

/** The last number that is known. */
export const lastOf = (samples: Sample[]): number | undefined => samples.findLast(([, v]) => v !== null)?.[1] ?? undefined

/** The sample that is nearest to a moment, of those that are known. */
export function nearest(samples: Sample[], at: number): Sample | undefined {
  let best: Sample | undefined
  for (const sample of samples) if (sample[1] !== null && (!best || Math.abs(sample[0] - at) < Math.abs(best[0] - at))) best = sample
  return best
}

/** The least round number that is not below. */
export function niceMax(value: number): number {
  if (!(value > 0)) return 1
  const unit = 10 ** Math.floor(Math.log10(value))
  return [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= value) ?? value
}

/** The same for bytes: a power of two, and a KiB at least. */
export const niceBytes = (value: number): number => 2 ** Math.max(10, Math.ceil(Math.log2(Math.max(1, value))))

type Scale = (n: number) => number
const point = (x: number, y: number): string => `${Math.round(x * 10) / 10} ${Math.round(y * 10) / 10}`

/** Pieces without a gap in between. One that is alone has the length of its step. */
function pieces(samples: Sample[]): [number, number][][] {
  const out: [number, number][][] = []
  let open = false
  for (const [at, value] of samples) {
    if (value === null) open = false
    else if (open) out.at(-1)!.push([at, value])
    else {
      out.push([[at, value]])
      open = true
    }
  }
  const step = samples.length > 1 ? samples[1]![0] - samples[0]![0] : 30_000
  return out.map((piece) => (piece.length > 1 ? piece : [[piece[0]![0] - step, piece[0]![1]], piece[0]!]))
}

export const linePath = (samples: Sample[], x: Scale, y: Scale): string =>
  pieces(samples).map((piece) => `M${piece.map(([at, v]) => point(x(at), y(v))).join('L')}`).join('')

export const areaPath = (samples: Sample[], x: Scale, y: Scale, ground: number): string =>
  pieces(samples).map((piece) => `M${piece.map(([at, v]) => point(x(at), y(v))).join('L')}L${point(x(piece.at(-1)![0]), ground)}L${point(x(piece[0]![0]), ground)}Z`).join('')
