// What a table is made of, and which element draws a row of it. Pure.
export interface Named { metadata: { name: string; namespace?: string } }
export const keyOf = (o: Named): string => (o.metadata.namespace ? `${o.metadata.namespace}/${o.metadata.name}` : o.metadata.name)

export interface Column<T> {
  id: string
  label: string
  sort?: (row: T) => string | number
  /** Of the table's width, in percent. */
  width?: number
  end?: boolean
  wide?: boolean
  /** Gives way where space is short; needs a width. */
  shrink?: boolean
  /** A class of its cells: an element inside each of them would be as many more to draw. */
  look?: 'muted' | 'mono'
}

/** Which rows are drawn, the first and the one after the last. */
export interface Span {
  first: number
  last: number
}
/** What is seen of rows that are so high. With a step, rows beyond it, too, and in steps of so many: a change for many pixels. */
export function spanOf(top: number, height: number, row: number, step = 0): Span {
  const [first, last] = [Math.floor(top / row), Math.ceil((top + height) / row)]
  return step ? { first: Math.max(0, Math.floor(first / step) * step - step), last: Math.ceil(last / step) * step + step } : { first, last }
}
export const apart = (a: Span, b: Span): boolean => a.last <= b.first || b.last <= a.first

/** Elements that draw what is seen of a long table: a row keeps its element for as long as it is seen, and one that comes gets that of one
 *  that has gone. Making elements is what costs when somebody scrolls, and moving them costs nearly as much. */
export class Slots {
  /** The elements' numbers in the order in which they are, and the rows they draw. */
  private order: readonly number[] = []
  private of = new Map<string, number>()
  /** The numbers of the rows' elements. Where the rows do not `stay`, as they are others, each place keeps its element. */
  assign(keys: string[], stay = true): readonly number[] {
    const next = new Map<string, number>()
    if (stay) {
      for (const k of keys) {
        const slot = this.of.get(k)
        if (slot !== undefined) next.set(k, slot)
      }
    }
    const taken = new Set(next.values())
    const free = this.order.filter((slot) => !taken.has(slot))
    let made = 0
    const make = (): number => {
      while (this.order.includes(made)) made++
      return made++
    }
    for (const k of keys) if (!next.has(k)) next.set(k, free.shift() ?? make())
    this.of = next
    return (this.order = keys.map((k) => next.get(k)!))
  }
}
