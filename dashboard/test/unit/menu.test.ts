// A menu of many: made by whoever comes near, with a mouse, keys or a finger.
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { createApp, defineComponent, h, type App } from 'vue'
import Menu from '@/ui/Menu.vue'

let app: App
beforeEach(() => vi.stubGlobal('ResizeObserver', class { observe(): void {} disconnect(): void {} unobserve(): void {} }))
afterEach(() => {
  app.unmount()
  document.body.innerHTML = ''
  vi.unstubAllGlobals()
})

it('a press without anything before it opens it', async () => {
  const made = vi.fn(() => [{ label: 'Do it', run: () => {} }])
  const box = document.body.appendChild(document.createElement('div'))
  app = createApp(defineComponent(() => () => h(Menu, { lazy: true, label: 'Actions', items: made }, { default: () => h('button', '…') })))
  app.mount(box)
  expect(box.querySelector('button')?.hasAttribute('aria-haspopup')).toBe(false)
  expect(made).not.toHaveBeenCalled()
  box.querySelector('button')!.click()
  await vi.waitFor(() => expect(document.querySelector('[role=menuitem]')?.textContent).toBe('Do it'))
})
