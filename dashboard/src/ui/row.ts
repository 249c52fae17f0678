// What a component inside a table's row may know of it.
import type { ComputedRef, InjectionKey } from 'vue'

/** The key of the row that is drawn here: an element draws another one when the table is scrolled or filtered. */
export const ROW: InjectionKey<ComputedRef<string>> = Symbol('row')
