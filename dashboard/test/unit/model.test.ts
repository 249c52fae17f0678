import { describe, expect, it } from 'vitest'
import { ApiError, readFailure } from '@/api/http'
import type { Image, VM, VMI } from '@/api/types'
import { choose, t } from '@/i18n'
import { age, bytes, quantity } from '@/model/format'
import { diff, hunks, withoutManagedFields } from '@/model/yaml'
import { actions, address, imageState, vmState } from '@/model/vm'

const vm = (status: string, extra: object = {}): VM => ({ metadata: { name: 'v', namespace: 'd', uid: 'u', resourceVersion: '1' }, spec: { template: { spec: { domain: {} } } }, status: { printableStatus: status }, ...extra })
const vmi = (phase: string, status: object = {}): VMI => ({ metadata: { name: 'v', namespace: 'd', uid: 'w', resourceVersion: '1' }, spec: { domain: {} }, status: { phase, ...status } })

describe('states', () => {
  it('say which rule holds a machine', () => {
    const held = vmi('Pending', { conditions: [{ type: 'PodScheduled', status: 'False', reason: 'Unschedulable', message: '0/1 nodes: memory' }] })
    expect(vmState(vm('ErrorUnschedulable'), held)).toEqual({ word: 'ErrorUnschedulable', tone: 'bad', why: '0/1 nodes: memory' })
    expect(vmState(vm('Running'), vmi('Running')).tone).toBe('good')
    expect(vmState(vm('SomethingNew')).tone).toBe('bad')
  })

  it('offer what can be done', () => {
    expect(actions(vm('Stopped'))).toEqual(['start'])
    expect(actions(vm('Running'), vmi('Running'))).toEqual(['stop', 'restart', 'pause'])
    expect(actions(vm('Paused'), vmi('Running', { conditions: [{ type: 'Paused', status: 'True' }] }))).toEqual(['unpause', 'stop'])
    expect(actions(vm('Starting'), vmi('Scheduling'))).toEqual(['stop'])
  })

  it('find an address', () => {
    expect(address(vmi('Running', { interfaces: [{ ipAddress: 'fe80::1' }, { ipAddress: '10.52.0.9/24' }] }))).toBe('10.52.0.9')
  })

  it('of images', () => {
    const image = (conditions: object[], extra: object = {}): Image => ({ metadata: { name: 'i', uid: 'i', resourceVersion: '1' }, spec: { displayName: 'i', sourceType: 'download' }, status: { conditions: conditions as [], ...extra } })
    expect(imageState(image([])).word).toBe('Waiting')
    expect(imageState(image([{ type: 'Imported', status: 'Unknown' }], { progress: 40 }))).toMatchObject({ word: 'Importing', progress: 40 })
    expect(imageState(image([{ type: 'Imported', status: 'True' }])).tone).toBe('good')
    expect(imageState(image([{ type: 'Imported', status: 'False', message: '404' }, { type: 'RetryLimitExceeded', status: 'True' }]))).toMatchObject({ word: 'Failed', why: '404' })
  })
})

describe('the API’s failures', () => {
  it('belong to fields', () => {
    const body = { reason: 'Invalid', message: 'no', details: { causes: [{ field: 'spec.template.spec.domain.cpu.cores', message: 'must be positive' }, { field: 'spec.x', message: 'other' }] } }
    const error = readFailure(422, JSON.stringify(body), '')
    expect(error).toBeInstanceOf(ApiError)
    expect(error.at('spec.template.spec.domain.cpu')).toBe('must be positive')
    expect(error.at('spec.templ')).toBe('')
  })

  it('may be no JSON', () => expect(readFailure(502, '', 'Bad Gateway').message).toBe('Bad Gateway'))
})

it('sizes, quantities, ages', () => {
  expect([quantity('1Gi'), quantity('500m'), quantity('2'), quantity('x')]).toEqual([2 ** 30, 0.5, 2, NaN])
  expect([bytes(512), bytes(1536), bytes(2 ** 30 * 12.34)]).toEqual(['512 B', '1.5 KiB', '12.3 GiB'])
  expect(age('2026-01-01T00:00:00Z', Date.parse('2026-01-01T02:30:00Z'))).toBe('2 h')
})

it('texts have their plural', async () => {
  await choose('en')
  expect(t('vm.deleteTitle', { n: 1 })).toBe('Delete 1 virtual machine?')
  expect(t('vm.deleteTitle', { n: 3 })).toBe('Delete 3 virtual machines?')
})

it('YAML is shown without bookkeeping', () => {
  const text = 'metadata:\n  labels: {}\n  managedFields:\n  - apiVersion: v1\n    fieldsV1:\n      "f:a": {}\n  - apiVersion: v2\n  name: x\nspec: {}\n'
  expect(withoutManagedFields(text)).toBe('metadata:\n  labels: {}\n  name: x\nspec: {}\n')
})

it('a diff leads from one text to the other', () => {
  const [a, b] = ['a\nb\nc\nd\ne', 'a\nc\nx\nd\ne\nf']
  const lines = diff(a, b)
  expect(lines.filter((l) => l.kind !== 'in').map((l) => l.text).join('\n')).toBe(a)
  expect(lines.filter((l) => l.kind !== 'out').map((l) => l.text).join('\n')).toBe(b)
  expect(lines.filter((l) => l.kind !== 'same')).toHaveLength(3)
  expect(hunks(diff('1\n2\n3\n4\n5\n6\n7', '1\n2\n3\n4\n5\n6\nx'), 1).map((l) => l.text)).toEqual(['6', '7', 'x'])
})
