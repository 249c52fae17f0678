// What the pages of simple kinds are made of: columns, and forms as data. A kind that is added is one entry in a file beside this.

import type { Component } from 'vue'
import type { Kind } from '@/api/kinds'
import type { Obj } from '@/api/types'
import type { Key } from '@/i18n'
import type { State } from '@/model/vm'

// Objects of these kinds are read field by field, whatever else they have.
// eslint-disable-next-line @typescript-eslint/no-explicit-any
export type Any = Obj & Record<string, any>
export type Values = Record<string, string | number | boolean>

export interface Cell {
  id: string
  label: Key
  text: (o: Any) => string
  sort?: (o: Any) => string | number
  end?: boolean
  wide?: boolean
  mono?: boolean
}

export interface Choice { value: string; label: string }

export interface FormField {
  id: string
  label: Key
  hint?: Key
  kind: 'text' | 'number' | 'area' | 'yaml' | 'select' | 'check'
  initial?: string | number | boolean
  choices?: () => Choice[]
  placeholder?: string
  min?: number
  /** Said beside the field before anything is sent. */
  check?: (value: string | number | boolean, values: Values) => Key | undefined
  show?: (values: Values) => boolean
  /** Fields of the object whose complaints belong here. */
  api?: string[]
  /** Half a line wide. */
  half?: boolean
}

export interface Form {
  create: Key
  edit?: Key
  /** Objects of this kind are there, and only changed. */
  fixed?: boolean
  /** Names of this kind are not simple ones. */
  nameCheck?: (name: string) => boolean
  fields: FormField[]
  /** All of the object but apiVersion, kind, name and namespace. */
  compose: (values: Values, name: string, before?: Any) => object
  read?: (o: Any) => Values
}

export interface Entry {
  id: string
  kind: Kind
  icon: Component
  title: Key
  empty: Key
  emptyText?: Key
  state?: (o: Any) => State
  cells: Cell[]
  form?: Form
  /** What is lost when one is deleted. */
  deleteText: Key
  /** Objects that are not shown here. */
  hide?: (o: Any) => boolean
}
