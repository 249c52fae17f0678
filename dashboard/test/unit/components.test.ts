// Components as they are mounted, with the API's answers given.
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { createApp, defineComponent, h, nextTick, ref, type App, type Component } from 'vue'
import { loadAccess } from '@/api/access'
import { catalog } from '@/catalog'
import { niceMax } from '@/model/series'
import Chart from '@/ui/Chart.vue'
import DataTable from '@/ui/DataTable.vue'
import Field from '@/ui/Field.vue'
import ObjectForm from '@/ui/ObjectForm.vue'

let app: App | undefined
function mount(component: Component): HTMLElement {
  const box = document.body.appendChild(document.createElement('div'))
  app = createApp(component)
  app.mount(box)
  return box
}
beforeEach(() => vi.stubGlobal('ResizeObserver', class { observe(): void {} disconnect(): void {} unobserve(): void {} }))
afterEach(() => {
  app?.unmount()
  document.body.innerHTML = ''
  vi.unstubAllGlobals()
})

const rows = (n: number) => Array.from({ length: n }, (_, i) => ({ metadata: { name: `m-${i}`, namespace: i % 2 ? 'b' : 'a' }, size: n - i }))
const table = (count: number, group = false) => {
  const selected = ref(new Set<string>())
  const box = mount(defineComponent(() => () => h(DataTable as Component, {
    rows: rows(count), label: 'Things', selectable: true, selected: selected.value, 'onUpdate:selected': (s: Set<string>) => (selected.value = s),
    columns: [{ id: 'name', label: 'Name', sort: (r: { metadata: { name: string } }) => r.metadata.name }, { id: 'size', label: 'Size', sort: (r: { size: number }) => r.size }],
    group: group ? (r: { metadata: { namespace: string } }) => r.metadata.namespace : undefined,
  }, { name: ({ row }: { row: { metadata: { name: string } } }) => row.metadata.name, size: ({ row }: { row: { size: number } }) => String(row.size) })))
  const names = () => [...box.querySelectorAll('tbody tr:not(.group):not(.gap) td:nth-child(2)')].map((td) => td.textContent)
  return { box, selected, names }
}

describe('a table', () => {
  it('sorts as people count, and the other way round', async () => {
    const { box, names } = table(12)
    expect(names().slice(0, 3)).toEqual(['m-0', 'm-1', 'm-2'])
    expect(names().at(-1)).toBe('m-11')
    box.querySelectorAll<HTMLElement>('th button')[1]!.click()
    await nextTick()
    expect(names()[0]).toBe('m-11')
    box.querySelectorAll<HTMLElement>('th button')[1]!.click()
    await nextTick()
    expect(names()[0]).toBe('m-0')
    expect(box.querySelector('th[aria-sort]')?.getAttribute('aria-sort')).toBe('descending')
  })

  it('draws what is seen, and says how many there are', () => {
    const { box } = table(5000)
    expect(box.querySelectorAll('tbody tr').length).toBeLessThan(70)
    expect(box.querySelector('table')?.getAttribute('aria-rowcount')).toBe('5000')
  })

  it('draws a row that comes with the element of one that has gone, and leaves the others theirs', async () => {
    const { box } = table(5000)
    const scroll = box.querySelector<HTMLElement>('.box')!
    const by = (name: string) => [...box.querySelectorAll<HTMLElement>('tr[data-row]')].find((r) => r.dataset.row?.endsWith(`/${name}`))
    const scrollTo = async (row: number) => {
      scroll.scrollTop = 44 * row
      scroll.dispatchEvent(new Event('scroll'))
      await nextTick()
    }
    await scrollTo(20)
    const [gone, stays] = [by('m-12')!, by('m-40')!]
    const before = new Set(box.querySelectorAll('tr[data-row]'))
    gone.querySelector('input')!.focus()
    await scrollTo(30)
    expect(by('m-12')).toBeUndefined()
    expect(by('m-40')).toBe(stays)
    expect(by('m-60')).toBeTruthy()
    expect([...box.querySelectorAll('tr[data-row]')].filter((r) => !before.has(r)).length).toBeLessThan(12)
    expect(document.activeElement).toBe(document.body)
  })

  describe('that is filtered', () => {
    const filtered = () => {
      const all = rows(5000)
      const match = ref<((r: { metadata: { name: string } }) => boolean) | undefined>()
      const drawn = vi.fn((name: string) => name)
      const columns = [{ id: 'name', label: 'Name', sort: (r: { metadata: { name: string } }) => r.metadata.name }]
      const box = mount(defineComponent(() => () => h(DataTable as Component, { rows: all, match: match.value, label: 'Things', columns },
        { name: ({ row }: { row: { metadata: { name: string } } }) => drawn(row.metadata.name), $stable: true })))
      const trs = () => [...box.querySelectorAll<HTMLElement>('tr[data-row]')]
      return { box, match, drawn, trs }
    }

    it('leaves elements where they are, and draws other rows in them', async () => {
      const { box, match, trs } = filtered()
      const before = trs()
      match.value = (r) => r.metadata.name.endsWith('7')
      await nextTick()
      const after = trs()
      expect(after.slice(0, 3).map((r) => r.dataset.row)).toEqual(['b/m-7', 'b/m-17', 'b/m-27'])
      expect(after).toEqual(before.slice(0, after.length))
      expect(box.querySelector('table')?.getAttribute('aria-rowcount')).toBe('500')
      match.value = undefined
      await nextTick()
      expect(trs().slice(0, 3).map((r) => r.textContent)).toEqual(['m-0', 'm-1', 'm-2'])
    })

    it('draws no row again that is the same', async () => {
      const { match, drawn } = filtered()
      drawn.mockClear()
      match.value = () => true
      await nextTick()
      expect(drawn).not.toHaveBeenCalled()
    })

    it('draws the rows beyond what is seen when the typing has stopped', async () => {
      const { match, trs } = filtered()
      const before = trs().length
      match.value = () => true
      await nextTick()
      expect(trs().length).toBeLessThan(before)
      await vi.waitFor(() => expect(trs().length).toBe(before))
    })

    it('stays a long one however few match', async () => {
      const { box, match, trs } = filtered()
      const before = trs()
      match.value = (r) => r.metadata.name === 'm-42'
      await nextTick()
      expect(trs()).toEqual([before[0]])
      expect(box.querySelector('.box')?.classList.contains('windowed')).toBe(true)
    })
  })

  it('selects one, a range with Shift, and all', async () => {
    const { box, selected } = table(10)
    const boxes = () => box.querySelectorAll<HTMLInputElement>('tbody input')
    boxes()[1]!.click()
    await nextTick()
    boxes()[4]!.dispatchEvent(new MouseEvent('click', { shiftKey: true, bubbles: true }))
    await nextTick()
    expect([...selected.value].sort()).toEqual(['a/m-2', 'a/m-4', 'b/m-1', 'b/m-3'])
    box.querySelector<HTMLInputElement>('thead input')!.dispatchEvent(new Event('change'))
    await nextTick()
    expect(selected.value.size).toBe(10)
  })

  it('groups, and folds a group', async () => {
    const { box, names } = table(6, true)
    const groups = [...box.querySelectorAll<HTMLElement>('.group button')]
    expect(groups.map((g) => g.textContent?.trim())).toEqual(['a 3', 'b 3'])
    groups[0]!.click()
    await nextTick()
    expect(names()).toEqual(['m-1', 'm-3', 'm-5'])
  })
})

it('a field ties its complaint to what is typed into', () => {
  const box = mount(defineComponent(() => () => h(Field, { label: 'Name', error: 'No.' }, { default: (f: { id: string; describedby: string; invalid: true }) => h('input', { id: f.id, 'aria-describedby': f.describedby, 'aria-invalid': f.invalid }) })))
  const input = box.querySelector('input')!
  expect(box.querySelector('label')?.getAttribute('for')).toBe(input.id)
  expect(document.getElementById(input.getAttribute('aria-describedby')!)?.textContent).toBe('No.')
})

it('a chart says what it shows', () => {
  const box = mount(defineComponent(() => () => h(Chart, { title: 'Use', since: 0, until: 10, show: (n: number) => `${n} u`, nice: niceMax, series: [{ label: 'A', samples: [[0, 1], [10, 3]] }] })))
  expect(box.querySelector('svg')?.getAttribute('aria-label')).toBe('Use: A 3 u')
  expect([...box.querySelectorAll('.tick')].map((e) => e.textContent)).toEqual(['0 u', '2.5 u', '5 u'])
})

describe('a form made from its description', () => {
  const sent: { url: URL; method: string; body: unknown }[] = []
  let refuse: object | undefined
  beforeEach(async () => {
    sent.length = 0
    refuse = undefined
    vi.stubGlobal('fetch', (url: URL, options: { method?: string; body?: string }) => {
      if (url.pathname.endsWith('selfsubjectrulesreviews')) return Promise.resolve(new Response(JSON.stringify({ status: { resourceRules: [{ verbs: ['create'], apiGroups: ['*'], resources: ['*'] }] } })))
      sent.push({ url, method: options.method ?? 'GET', body: options.body && JSON.parse(options.body) })
      return Promise.resolve(refuse ? new Response(JSON.stringify(refuse), { status: 422 }) : new Response('{"metadata":{}}', { status: 201 }))
    })
    await loadAccess()
  })
  const open = async () => {
    mount(defineComponent(() => () => h(ObjectForm, { entry: catalog.networks!, open: true })))
    await vi.waitFor(() => expect(document.querySelector('[role=dialog] input')).toBeTruthy())
    const inputs = document.querySelectorAll<HTMLInputElement>('[role=dialog] input')
    const write = (n: number, text: string) => {
      inputs[n]!.value = text
      inputs[n]!.dispatchEvent(new Event('input', { bubbles: true }))
    }
    const submit = async () => {
      document.querySelector<HTMLElement>('[role=dialog] .button.primary')!.click()
      await nextTick()
    }
    const errors = () => [...document.querySelectorAll('[role=dialog] .error')].map((e) => e.textContent)
    return { write, submit, errors }
  }

  it('sends nothing while a field is wrong', async () => {
    const { write, submit, errors } = await open()
    write(0, 'Not a name')
    write(2, '5000')
    await submit()
    expect(errors()).toHaveLength(3)
    expect(sent).toEqual([])
  })

  it('sends what it composed', async () => {
    const { write, submit } = await open()
    write(0, 'lan')
    write(1, 'mgmt-br')
    write(2, '7')
    await submit()
    await vi.waitFor(() => expect(sent).toHaveLength(1))
    const { url, method, body } = sent[0]!
    expect([method, url.pathname]).toEqual(['POST', '/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions'])
    const made = body as { metadata: object; spec: { config: string } }
    expect(made.metadata).toEqual({ name: 'lan', namespace: 'default' })
    expect(JSON.parse(made.spec.config)).toMatchObject({ type: 'bridge', bridge: 'mgmt-br', vlan: 7 })
  })

  it('shows the API’s complaint beside its field', async () => {
    refuse = { reason: 'Invalid', message: 'no', details: { causes: [{ field: 'spec.config', message: 'is no bridge' }] } }
    const { write, submit, errors } = await open()
    write(0, 'lan')
    write(1, 'mgmt-br')
    await submit()
    await vi.waitFor(() => expect(errors()).toEqual(['is no bridge']))
  })
})
