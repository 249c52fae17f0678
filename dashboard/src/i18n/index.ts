// What people read, in their language. Keys are checked by the compiler; a language is one file with the same keys.

import { shallowRef } from 'vue'
import { en } from './en'

export type Key = keyof typeof en
type Messages = Record<Key, string>

/** Languages other than English are loaded when they are chosen. */
const loaders: Record<string, () => Promise<Messages>> = {}

const messages = shallowRef<Messages>(en)
export const locale = shallowRef('en')

export const locales = (): string[] => ['en', ...Object.keys(loaders)]

export async function choose(name: string): Promise<void> {
  messages.value = name === 'en' ? en : ((await loaders[name]?.()) ?? en)
  locale.value = name
  document.documentElement.lang = name
}

/** The text of a key, with {names} replaced, and `singular|plural` chosen by {n}. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  let text: string = messages.value[key]
  if (text.includes('|') && typeof values.n === 'number') {
    const forms = text.split('|')
    text = (new Intl.PluralRules(locale.value).select(values.n) === 'one' ? forms[0] : forms[1]) ?? text
  }
  return text.replace(/\{(\w+)\}/g, (all, name: string) => (name in values ? String(values[name]) : all))
}
