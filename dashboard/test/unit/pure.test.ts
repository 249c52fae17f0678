import { describe, expect, it } from 'vitest'
import { allows, type Rule } from '@/api/access'
import { en } from '@/i18n/en'
import { zh } from '@/i18n/zh'
import { moved, resized, withMedium, withNic, withoutNic } from '@/model/change'
import { kubeconfig } from '@/model/kubeconfig'
import { groupers, labelsOf, rowOf } from '@/model/machines'
import { find, opening, pathAt, rootOf, type Schemas } from '@/model/schema'
import { score } from '@/model/search'
import { areaPath, lastOf, linePath, nearest, niceBytes, niceMax, seriesOf, type Told } from '@/model/series'
import { apart, Slots, spanOf } from '@/model/table'
import type { VM, VMI } from '@/api/types'

describe('languages', () => {
  const places = (text: string) => [...text.matchAll(/\{\w+\}/g)].map((m) => m[0]).sort()
  it('have the same keys, the same places, and no text that was left out', () => {
    for (const [key, text] of Object.entries(en)) {
      const other = zh[key as keyof typeof en]
      expect(other, key).toBeTruthy()
      const [one = ''] = text.split('|')
      expect([...new Set(places(other))], key).toEqual([...new Set(places(one))])
    }
  })
})

describe('what RBAC allows', () => {
  const rules: Rule[] = [
    { verbs: ['get', 'list'], apiGroups: ['kubevirt.io'], resources: ['virtualmachines'] },
    { verbs: ['*'], apiGroups: ['subresources.kubevirt.io'], resources: ['*/start'] },
    { verbs: ['update'], apiGroups: [''], resources: ['secrets'], resourceNames: ['mine'] },
  ]
  it.each([
    ['list', 'kubevirt.io', 'virtualmachines', '', true], ['delete', 'kubevirt.io', 'virtualmachines', '', false], ['list', '', 'virtualmachines', '', false],
    ['update', 'subresources.kubevirt.io', 'virtualmachines/start', '', true], ['update', 'subresources.kubevirt.io', 'virtualmachines/stop', '', false],
    ['update', '', 'secrets', 'mine', true], ['update', '', 'secrets', 'other', false], ['update', '', 'secrets', '', false],
  ])('%s %s %s %s', (verb, group, resource, name, expected) => expect(allows(rules, verb, group, resource, name)).toBe(expected))
  it('of a master is everything', () => expect(allows([{ verbs: ['*'], apiGroups: ['*'], resources: ['*'] }], 'x', 'y', 'z/w')).toBe(true))
})

describe('numbers over time', () => {
  const told = { stepSeconds: 30, endSeconds: 100, cpu: [1, null, 3] } as unknown as Told
  const same = (n: number): number => n
  it('end at the same time', () => {
    const samples = seriesOf(told, 'cpu')
    expect(samples).toEqual([[40_000, 1], [70_000, null], [100_000, 3]])
    expect([lastOf(samples), lastOf([[1, 2], [2, null]]), lastOf([])]).toEqual([3, 2, undefined])
    expect(nearest(samples, 72_000)).toEqual([100_000, 3])
  })
  it('are drawn on a round scale', () => {
    expect([0, 0.3, 7, 11, 1999].map(niceMax)).toEqual([1, 0.5, 10, 20, 2000])
    expect([0, 900, 1500, 3 * 2 ** 30].map(niceBytes)).toEqual([1024, 1024, 2048, 4 * 2 ** 30])
  })
  it('are drawn in pieces, with the length of a step for what is alone', () => {
    expect(linePath([], same, same)).toBe('')
    expect(linePath([[0, 1], [2, 3], [4, null], [6, 5]], same, same)).toBe('M0 1L2 3M4 5L6 5')
    expect(areaPath([[0, 1], [2, 3]], same, same, 9)).toBe('M0 1L2 3L2 9L0 9Z')
  })
})

describe('completion', () => {
  const text = 'kind: Thing\napiVersion: g/v1\nspec:\n  list:\n  - name: a\n    in:\n      x: 1\n  - name: b\n  map:\n    any:\n      x: 2\n'
  const lines = text.split('\n')
  it.each([[0, []], [3, ['spec']], [4, ['spec', 'list', '[]']], [5, ['spec', 'list', '[]']], [6, ['spec', 'list', '[]', 'in']], [7, ['spec', 'list', '[]']], [8, ['spec']], [10, ['spec', 'map', 'any']]])('line %i is at %j', (line, path) => expect(pathAt(lines, line)).toEqual(path))
  const all: Schemas = {
    Thing: { 'x-kubernetes-group-version-kind': [{ group: 'g', version: 'v1', kind: 'Thing' }], properties: { spec: { allOf: [{ $ref: '#/components/schemas/Spec' }], description: 'what' } } },
    Spec: { properties: { list: { type: 'array', items: { properties: { name: { type: 'string', enum: ['a'] } } } }, map: { additionalProperties: { $ref: '#/x/Deep' } } } },
    Deep: { type: 'object', properties: { x: { type: 'integer' } } },
  }
  it('follows references, lists and maps', () => {
    const root = rootOf(text, all)
    expect(find(root, ['spec', 'list', '[]', 'name'], all)?.enum).toEqual(['a'])
    expect(find(root, ['spec', 'map', 'any', 'x'], all)?.type).toBe('integer')
    expect(find(root, ['spec', 'nothing'], all)).toBeUndefined()
    expect(rootOf('kind: Thing\napiVersion: g/v2\n', all)).toBeUndefined()
    expect([opening({ type: 'array' }), opening({ type: 'string' })]).toEqual([':\n', ': '])
  })
})

const vm = (): VM => ({
  metadata: { name: 'v', namespace: 'd', uid: 'u', resourceVersion: '1', labels: { app: 'web', 'kubevirt.io/x': 'y' } },
  spec: { template: { spec: { domain: { cpu: { cores: 2, sockets: 1, maxSockets: 4 }, memory: { guest: '1Gi', maxGuest: '4Gi' }, devices: { disks: [{ name: 'cd', cdrom: {} }], interfaces: [{ name: 'a', masquerade: {} }] } }, networks: [{ name: 'a', pod: {} }], volumes: [] } } },
})

describe('changes of a machine that runs', () => {
  it('put a medium in, and take it out', () => {
    const full = withMedium(vm(), 'cd', 'iso')
    expect(full.spec.template.spec.volumes).toEqual([{ name: 'cd', persistentVolumeClaim: { claimName: 'iso', hotpluggable: true } }])
    expect(withMedium(full, 'cd', 'other').spec.template.spec.volumes).toHaveLength(1)
    expect(withMedium(full, 'cd', '').spec.template.spec.volumes).toEqual([])
  })
  it('grow by sockets where they may', () => {
    expect(resized(vm(), 4, 2).spec.template.spec.domain).toMatchObject({ cpu: { cores: 2, sockets: 2, maxSockets: 4 }, memory: { guest: '2Gi', maxGuest: '4Gi' } })
    expect(resized(vm(), 3, 1).spec.template.spec.domain.cpu).toMatchObject({ cores: 3, sockets: 1 })
  })
  it('change cards', () => {
    const more = withNic(vm(), { name: 'b', network: 'd/n', model: 'virtio', mac: '' })
    expect(more.spec.template.spec.networks?.[1]).toEqual({ name: 'b', multus: { networkName: 'd/n' } })
    expect(moved(more, 'b', 'd/m').spec.template.spec.networks?.[1]).toEqual({ name: 'b', multus: { networkName: 'd/m' } })
    expect(withoutNic(more, 'b', true).spec.template.spec.domain.devices?.interfaces?.[1]).toMatchObject({ state: 'absent' })
    expect(withoutNic(more, 'b', false).spec.template.spec.networks).toHaveLength(1)
  })
})

it('a row is made once for what it shows', () => {
  const [a, b]: [VM, VMI] = [vm(), { metadata: { ...vm().metadata }, spec: vm().spec.template.spec, status: { phase: 'Running', nodeName: 'n1' } }]
  const row = rowOf(a, b)
  expect(rowOf(a, b)).toBe(row)
  expect(rowOf(a, undefined)).not.toBe(row)
  expect([row.labels, row.node, row.text.includes('app=web')]).toEqual([['app=web'], 'n1', true])
  expect(labelsOf([row])).toEqual(['app'])
  expect([groupers('@node')!(row), groupers('app')!(row), groupers('')]).toEqual(['n1', 'web', undefined])
})

it('searching prefers beginnings', () => {
  expect(score('web', 'web-1')).toBeGreaterThan(score('web', 'my-web'))
  expect(score('wb', 'web-1')).toBeGreaterThan(0)
  expect(score('web x', 'web-1')).toBe(0)
})

it('a kubeconfig has what a client needs', () => {
  expect(kubeconfig('https://h:6443/p/', 'CA', 'robot', 'tok', 'lab')).toContain('server: https://h:6443/p\n      certificate-authority-data: Q0E=')
})

describe('the rows of a long table that are drawn', () => {
  it('are those that are seen, or some beyond them in steps', () => {
    expect(spanOf(0, 700, 44)).toEqual({ first: 0, last: 16 })
    expect(spanOf(0, 700, 44, 8)).toEqual({ first: 0, last: 24 })
    expect(spanOf(4400, 700, 44)).toEqual({ first: 100, last: 116 })
    expect(spanOf(4400, 700, 44, 8)).toEqual({ first: 88, last: 128 })
  })
  it('are others after a jump', () => {
    expect(apart({ first: 0, last: 16 }, { first: 16, last: 32 })).toBe(true)
    expect(apart({ first: 0, last: 16 }, { first: 15, last: 31 })).toBe(false)
  })
  it('keep their elements, and those that come get the others', () => {
    const slots = new Slots()
    expect(slots.assign(['a', 'b', 'c', 'd'])).toEqual([0, 1, 2, 3])
    expect(slots.assign(['c', 'd', 'e', 'f'])).toEqual([2, 3, 0, 1])
    expect(slots.assign(['b', 'c', 'd', 'e'])).toEqual([1, 2, 3, 0])
  })
  it('leave each element in its place where all are others', () => {
    const slots = new Slots()
    slots.assign(['a', 'b', 'c'])
    slots.assign(['b', 'c', 'd'])
    expect(slots.assign(['d', 'b', 'x'], false)).toEqual([1, 2, 0])
    expect(slots.assign(['p', 'q', 'r'])).toEqual([1, 2, 0])
  })
  it('never share an element, however many come and go', () => {
    const slots = new Slots()
    slots.assign(['a', 'b', 'c', 'd'])
    slots.assign(['c', 'd'])
    const [c, d, ...more] = slots.assign(['c', 'd', 'e', 'f', 'g'])
    expect([c, d]).toEqual([2, 3])
    expect(new Set([c, d, ...more]).size).toBe(5)
  })
})
