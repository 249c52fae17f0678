// What a row of a table has, and which element draws it. Pure.
export interface Named { metadata: { name: string; namespace?: string } }
export const keyOf = (o: Named): string => (o.metadata.namespace ? `${o.metadata.namespace}/${o.metadata.name}` : o.metadata.name)

/** Elements that draw what is seen of a long table: a row keeps its element for as long as it is seen, and one that comes gets that of one
 *  that has gone. Making elements is what costs when somebody scrolls. */
export class Slots {
  private of = new Map<string, number>()
  /** The numbers of the rows' elements. */
  assign(keys: string[]): number[] {
    const next = new Map<string, number>()
    for (const k of keys) {
      const slot = this.of.get(k)
      if (slot !== undefined) next.set(k, slot)
    }
    const taken = new Set(next.values())
    let free = 0
    for (const k of keys) {
      if (next.has(k)) continue
      while (taken.has(free)) free++
      taken.add(free)
      next.set(k, free)
    }
    this.of = next
    return keys.map((k) => next.get(k)!)
  }
}
