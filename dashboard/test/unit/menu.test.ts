// A menu of many: made by whoever comes near, with a mouse, keys or a finger.
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { computed, createApp, defineComponent, h, nextTick, provide, ref, type App } from 'vue'
import Menu from '@/ui/Menu.vue'
import { ROW } from '@/ui/row'

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

it('is not another row’s when its element draws that one', async () => {
  const row = ref('a')
  const box = document.body.appendChild(document.createElement('div'))
  app = createApp(defineComponent(() => {
    provide(ROW, computed(() => row.value))
    return () => h(Menu, { lazy: true, label: 'Actions', items: () => [{ label: `Do it to ${row.value}`, run: () => {} }] }, { default: () => h('button', row.value) })
  }))
  app.mount(box)
  box.querySelector('button')!.click()
  await vi.waitFor(() => expect(document.querySelector('[role=menuitem]')?.textContent).toBe('Do it to a'))
  row.value = 'b'
  await nextTick()
  await vi.waitFor(() => expect(document.querySelector('[role=menuitem]')).toBeNull())
  expect(box.querySelector('button')?.textContent).toBe('b')
  expect(box.querySelector('button')?.hasAttribute('aria-haspopup')).toBe(false)
})
