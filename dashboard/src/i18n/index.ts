// What people read, in their language. Keys are checked by the compiler; a language is one file with the same keys.

import { shallowRef } from 'vue'
import { en } from './en'

export type Key = keyof typeof en
export type Messages = Record<Key, string>

/** Languages other than English are loaded when they are chosen. */
const loaders: Record<string, () => Promise<Messages>> = {
  zh: async () => (await import('./zh')).zh,
}

/** What languages call themselves. */
export const NAMES: Record<string, string> = { en: 'English', zh: '简体中文' }

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

/** A complaint: a text, and what it is about as `{what}` where that is a text, too. */
export const told = ([key, values, what]: [Key, Record<string, string | number>?, Key?]): string =>
  t(key, what ? { ...values, what: t(what, values) } : values)

/** A state's word in the chosen language; those that nobody foresaw are shown as they are. */
export const stateWord = (word: string): string => (`state.${word}` in messages.value ? messages.value[`state.${word}` as Key] : word)
