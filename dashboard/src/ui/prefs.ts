// What a person chose for this browser: theme, language, namespace, columns. Kept locally; without storage it lasts as long as the page.
import { ref, watch } from 'vue'
const read = (name: string): string => {
  try { return localStorage.getItem(`sheaf.${name}`) ?? '' } catch { return '' }
}
export function kept(name: string, otherwise: string) {
  const value = ref(read(name) || otherwise)
  watch(value, (v) => { try { localStorage.setItem(`sheaf.${name}`, v) } catch { /* it lasts as long as the page */ } })
  return value
}
export const theme = kept('theme', 'auto')
export const language = kept('language', (navigator.language ?? 'en').toLowerCase().startsWith('zh') ? 'zh' : 'en')
/** Empty for the browser's. */
export const zone = kept('zone', '')
/** Empty for all namespaces. */
export const namespace = kept('namespace', '')
const system = window.matchMedia?.('(prefers-color-scheme: dark)')
function apply(): void {
  const dark = theme.value === 'dark' || (theme.value === 'auto' && system?.matches)
  document.documentElement.dataset.theme = dark ? 'dark' : 'light'
}
watch(theme, apply)
system?.addEventListener?.('change', apply)
apply()
