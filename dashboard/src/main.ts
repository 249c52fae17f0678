import { createApp, watch } from 'vue'
import App from './App.vue'
import { refresh, session } from './api/session'
import { router } from './router'
import { choose, t } from './i18n'
import { stayAwake } from './api/session'
import { backoff, forget } from './api/watch'
import { language } from './ui/prefs'
import './style.css'

// Terminals and editors make style elements as they go; the server's policy lets those pass that carry this page's nonce.
const nonce = document.querySelector<HTMLMetaElement>('meta[name=csp-nonce]')?.content ?? ''
const create = document.createElement.bind(document)
document.createElement = ((name: string, options?: ElementCreationOptions) => {
  const element = create(name, options)
  if (name.toLowerCase() === 'style') element.setAttribute('nonce', nonce)
  return element
}) as typeof document.createElement

await choose(language.value)
// Who is signed in has to be known: a server that does not answer yet is not one that says "nobody".
for (let failures = 0; !session.known; failures++) {
  try {
    await refresh()
  } catch (error) {
    const place = document.getElementById('app')!
    place.className = 'waiting'
    place.textContent = t('app.unreachable', { why: error instanceof Error ? error.message : String(error) })
    await new Promise((done) => setTimeout(done, backoff(failures)))
  }
}
document.getElementById('app')!.className = ''
createApp(App).use(router).mount('#app')

// A session that ends while a page is open leads back to that page after signing in again.
watch(() => session.user, (user) => {
  const here = router.currentRoute.value
  forget()
  if (!user && !here.meta.open) {
    void refresh().catch(() => {})
    void router.push({ name: 'login', query: { to: here.fullPath } })
  }
})

for (const event of ['pointerdown', 'keydown', 'wheel']) window.addEventListener(event, stayAwake, { passive: true })
