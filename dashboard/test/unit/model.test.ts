import { describe, expect, it } from 'vitest'
import { ApiError, readFailure } from '@/api/http'
import type { Image, VM, VMI } from '@/api/types'
import { choose, t } from '@/i18n'
import { check, command, compose, keyComplaint, userData, validName, type Wanted } from '@/model/compose'
import { age, bytes, quantity } from '@/model/format'
import { nameOf } from '@/model/upload'
import { diff, hunks, withoutManagedFields } from '@/model/yaml'
import { actions, address, claimsOf, imageState, vmState } from '@/model/vm'

const KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2Yc0ZkUq8q1yq3J1 me@here'
const wanted: Wanted = { namespace: 'lab', name: 'web', image: 'default/debian-12', cpus: 2, memoryGi: 1.5, diskGi: 10, network: '', keys: [KEY], userData: '', start: true }

describe('the form of a new machine', () => {
  it('makes what the command line makes', () => {
    const { vm, secret } = compose(wanted) as { vm: VM; secret: { stringData: { userdata: string } } }
    const spec = vm.spec.template.spec
    expect(spec.domain).toMatchObject({ cpu: { cores: 2 }, memory: { guest: '1536Mi' } })
    expect(spec.networks).toEqual([{ name: 'default', pod: {} }])
    expect(claimsOf(vm)).toEqual({ own: ['web-root'], others: [] })
    expect(spec.volumes?.[1]).toEqual({ name: 'cloudinit', cloudInitNoCloud: { secretRef: { name: 'web-cloudinit' } } })
    expect(secret.stringData.userdata).toBe(`#cloud-config\nssh_authorized_keys:\n  - "${KEY}"\n`)
    expect(command(wanted)).toBe('sheaf vm create -n lab web --image default/debian-12 --cpus 2 --memory 1536Mi --disk 10Gi --ssh-key FILE.pub')
  })

  it('without keys and data there is no cloud-init disk', () => {
    const { vm, secret } = compose({ ...wanted, keys: [], network: 'default/vlan1', start: false }) as { vm: VM; secret?: object }
    expect(secret).toBeUndefined()
    expect(vm.spec.runStrategy).toBe('Halted')
    expect(vm.spec.template.spec.networks).toEqual([{ name: 'default', multus: { networkName: 'default/vlan1' } }])
    expect(vm.spec.template.spec.volumes).toHaveLength(1)
  })

  it('names the field that is wrong', () => {
    const bad = check({ ...wanted, name: 'Web_1', image: '', cpus: 0, memoryGi: NaN, diskGi: 1, keys: ['x'], userData: '#!/bin/sh' }, false, 2)
    expect(Object.keys(bad).sort()).toEqual(['cpus', 'disk', 'image', 'key', 'memory', 'name', 'userData'])
    expect(check(wanted, true, 2)).toEqual({ name: ['create.bad.taken', { namespace: 'lab' }] })
    expect(check(wanted, false, 2)).toEqual({})
  })

  it('knows names and keys', () => {
    expect([validName('a'), validName('a-1'), validName('-a'), validName('a.b'), validName('x'.repeat(64))]).toEqual([true, true, false, false, false])
    expect(keyComplaint('-----BEGIN OPENSSH PRIVATE KEY-----')).toBe('create.bad.private')
    expect(keyComplaint(KEY)).toBeUndefined()
    expect(userData('#cloud-config\npassword: x\n', [])).toBe('#cloud-config\npassword: x\n')
    expect(nameOf('C:\\Images\\Debian 12_generic.qcow2')).toBe('debian-12-generic')
  })
})

const vm = (status: string, extra: object = {}): VM => ({ metadata: { name: 'v', namespace: 'd', uid: 'u', resourceVersion: '1' }, spec: { template: { spec: { domain: {} } } }, status: { printableStatus: status }, ...extra })
const vmi = (phase: string, status: object = {}): VMI => ({ metadata: { name: 'v', namespace: 'd', uid: 'w', resourceVersion: '1' }, spec: { domain: {} }, status: { phase, ...status } })

describe('states', () => {
  it('say which rule holds a machine', () => {
    const held = vmi('Pending', { conditions: [{ type: 'PodScheduled', status: 'False', reason: 'Unschedulable', message: '0/1 nodes: memory' }] })
    expect(vmState(vm('ErrorUnschedulable'), held)).toEqual({ word: 'No node fits', tone: 'bad', why: '0/1 nodes: memory' })
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
