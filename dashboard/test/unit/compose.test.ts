import { describe, expect, it } from 'vitest'
import type { VM } from '@/api/types'
import { checkNetwork, checkUser, withKeys } from '@/model/cloudinit'
import { check, command, compose, fresh, keyComplaint, names, place, read, secretOf, validName, type DiskWanted, type Wanted, type World } from '@/model/compose'
import { claimName } from '@/model/claims'
import { kubectl, quoted } from '@/model/manifest'
import { nameOf } from '@/model/upload'
import { claimsOf } from '@/model/vm'

const KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2Yc0ZkUq8q1yq3J1 me@here'
const root: DiskWanted = { name: 'root', source: 'image', cdrom: false, image: 'default/debian-12', sizeGi: 10, claim: '', storageClass: '', bus: 'virtio' }
const wanted: Wanted = { ...fresh('lab'), name: 'web', cpus: 2, memoryGi: 1.5, disks: [root], keys: [KEY] }
const world: World = { taken: () => false, imageGi: () => 2 }
const spec = (vm: VM) => vm.spec.template.spec

describe('the form of a new machine', () => {
  it('makes what the command line makes', () => {
    const { vm, secret } = compose(wanted, 'web')
    expect(spec(vm).domain).toMatchObject({ cpu: { cores: 2 }, memory: { guest: '1536Mi' } })
    expect(spec(vm).networks).toEqual([{ name: 'default', pod: {} }])
    expect(claimsOf(vm)).toEqual({ own: ['web-root'], others: [] })
    expect(spec(vm).volumes?.[1]).toEqual({ name: 'cloudinit', cloudInitNoCloud: { secretRef: { name: 'web-cloudinit' } } })
    expect(secret?.stringData).toEqual({ userdata: `#cloud-config\nssh_authorized_keys:\n  - ${KEY}\n` })
    expect(command(wanted)).toBe('sheaf vm create -n lab web --image default/debian-12 --cpus 2 --memory 1536Mi --disk 10Gi --ssh-key FILE.pub')
    expect(command({ ...wanted, firmware: 'efi' }), 'no command says this').toBeUndefined()
  })

  it('without keys and data there is no cloud-init disk', () => {
    const { vm, secret } = compose({ ...wanted, keys: [], nics: [{ name: 'default', network: 'default/vlan1', model: 'virtio', mac: '' }], runStrategy: 'Halted' }, 'web')
    expect(secret).toBeUndefined()
    expect(vm.spec.runStrategy).toBe('Halted')
    expect(spec(vm).networks).toEqual([{ name: 'default', multus: { networkName: 'default/vlan1' } }])
    expect(spec(vm).volumes).toHaveLength(1)
  })

  it('knows disks of every kind, firmware, TPM and placement', () => {
    const disks: DiskWanted[] = [root, { ...root, name: 'data1', source: 'new', image: '', sizeGi: 0.5, storageClass: 'fast' }, { ...root, name: 'iso', cdrom: true }, { ...root, name: 'old', source: 'claim', claim: 'kept', bus: 'scsi' }]
    const { vm } = compose({ ...wanted, disks, firmware: 'secure', tpm: 'persistent', node: 'n1', selector: [['disk', 'ssd']], grows: true }, 'web')
    expect(spec(vm).domain.devices?.disks).toEqual([
      { name: 'root', disk: { bus: 'virtio' }, bootOrder: 1 }, { name: 'data1', disk: { bus: 'virtio' }, bootOrder: 2 }, { name: 'iso', cdrom: { bus: 'sata' }, bootOrder: 3 },
      { name: 'old', disk: { bus: 'scsi' }, bootOrder: 4 }, { name: 'cloudinit', disk: { bus: 'virtio' } },
    ])
    expect(spec(vm).volumes?.map(claimName)).toEqual(['web-root', 'web-data1', 'web-iso', 'kept', ''])
    expect(claimsOf(vm)).toEqual({ own: ['web-root', 'web-data1', 'web-iso'], others: ['kept'] })
    expect(spec(vm).domain.firmware).toEqual({ bootloader: { efi: { secureBoot: true } } })
    expect(spec(vm).domain.features).toEqual({ smm: { enabled: true } })
    expect(spec(vm).domain.devices?.tpm).toEqual({ persistent: true })
    expect(spec(vm).nodeSelector).toEqual({ disk: 'ssd', 'kubernetes.io/hostname': 'n1' })
    expect(spec(vm).domain.cpu).toEqual({ cores: 1, sockets: 2, threads: 1, maxSockets: 8 })
    expect(spec(vm).domain.memory).toEqual({ guest: '1536Mi', maxGuest: '6Gi' })
  })

  it('has the smaller devices, and keeps the machines of a group apart', () => {
    const { vm } = compose({ ...wanted, rng: true, watchdog: 'poweroff', sound: 'ac97', graphics: 'virtio', group: 'web', apart: 'must' }, 'web')
    expect(spec(vm).domain.devices).toMatchObject({ rng: {}, watchdog: { name: 'watchdog', i6300esb: { action: 'poweroff' } }, sound: { name: 'sound', model: 'ac97' }, video: { type: 'virtio' } })
    const term = { topologyKey: 'kubernetes.io/hostname', labelSelector: { matchLabels: { 'apart.sheaf.io/group': 'web' } } }
    expect(spec(vm).affinity).toEqual({ podAntiAffinity: { requiredDuringSchedulingIgnoredDuringExecution: [term] } })
    expect(vm.spec.template.metadata?.labels).toMatchObject({ 'apart.sheaf.io/group': 'web', 'harvesterhci.io/vmName': 'web' })
    const again = read(vm, { userData: '', networkData: '' })
    expect(again).toMatchObject({ rng: true, watchdog: 'poweroff', sound: 'ac97', graphics: 'virtio', group: 'web', apart: 'must' })
    expect(compose(again, 'web', vm).vm.spec.template.spec.affinity, 'what stays is as it was').toEqual(spec(vm).affinity)
    const none = compose({ ...again, rng: false, watchdog: 'none', sound: 'none', graphics: 'none', group: '' }, 'web', vm).vm
    expect([spec(none).affinity, spec(none).domain.devices?.watchdog, spec(none).domain.devices?.video, spec(none).domain.devices?.rng]).toEqual([undefined, undefined, undefined, undefined])
    expect(spec(none).domain.devices?.autoattachGraphicsDevice).toBe(false)
    expect(none.spec.template.metadata?.labels).toEqual({ 'harvesterhci.io/vmName': 'web' })
    expect(check({ ...wanted, group: '-x', apartBy: 'a b' }, world)).toMatchObject({ group: ['create.bad.group'], apartBy: ['create.bad.labelKey'] })
    expect(place('spec.template.spec.affinity.podAntiAffinity', vm, wanted)).toBe('group')
    expect(place('spec.template.spec.domain.devices.sound.model', vm, wanted)).toBe('sound')
  })

  it('leaves rules of others alone', () => {
    const { vm } = compose(wanted, 'web')
    const other = { weight: 5, podAffinityTerm: { topologyKey: 'rack', labelSelector: { matchLabels: { app: 'x' } } } }
    spec(vm).affinity = { nodeAffinity: {}, podAntiAffinity: { preferredDuringSchedulingIgnoredDuringExecution: [other] } }
    const grouped = compose({ ...read(vm, { userData: '', networkData: '' }), group: 'g' }, 'web', vm).vm
    expect((spec(grouped).affinity?.podAntiAffinity as { preferredDuringSchedulingIgnoredDuringExecution: object[] }).preferredDuringSchedulingIgnoredDuringExecution).toHaveLength(2)
    expect(spec(compose({ ...read(grouped, { userData: '', networkData: '' }), group: '' }, 'web', grouped).vm).affinity).toEqual(spec(vm).affinity)
  })

  it('gives size to the instance type where there is one', () => {
    const { vm } = compose({ ...wanted, instancetype: 'VirtualMachineClusterInstancetype/u1.small' }, 'web')
    expect(vm.spec.instancetype).toEqual({ kind: 'VirtualMachineClusterInstancetype', name: 'u1.small' })
    expect([spec(vm).domain.cpu, spec(vm).domain.memory]).toEqual([undefined, undefined])
  })

  it('names the field that is wrong', () => {
    const bad = check({ ...wanted, name: 'Web_1', cpus: 0, memoryGi: NaN, keys: ['x'], userData: '#!/bin/sh', disks: [{ ...root, image: '', sizeGi: 1 }, { ...root, name: 'root' }] }, world)
    expect(Object.keys(bad).sort()).toEqual(['cpus', 'disks.0.image', 'disks.0.sizeGi', 'disks.1.name', 'key', 'memoryGi', 'name', 'userData'])
    expect(check(wanted, { ...world, taken: (_, n) => n === 'web' })).toEqual({ name: ['create.bad.taken', { namespace: 'lab', name: 'web' }] })
    expect(check(wanted, world)).toEqual({})
    const nic = wanted.nics[0]!
    const two = check({ ...wanted, count: 2, nics: [{ ...nic, mac: '52:54:00:00:00:01' }, { ...nic, name: 'b' }], labels: [['a b', 'c']], disks: [{ ...root, source: 'claim', claim: 'x' }] }, world)
    expect(Object.keys(two).sort()).toEqual(['disks.0.claim', 'labels.0', 'nics.0.mac', 'nics.1.network'])
  })

  it('many machines have names that sort, and disks of their own', () => {
    expect(names({ name: 'web', count: 3 })).toEqual(['web-01', 'web-02', 'web-03'])
    expect(names({ name: 'web', count: 100 })[0]).toBe('web-001')
    expect(claimsOf(compose({ ...wanted, count: 2 }, 'web-02').vm).own).toEqual(['web-02-root'])
  })

  it('puts complaints of the API where they belong', () => {
    const { vm } = compose(wanted, 'web')
    const at = (field: string) => place(field, vm, wanted)
    expect(at('spec.template.spec.domain.devices.disks[0].disk.bus')).toBe('disks.0.name')
    expect(at('spec.template.spec.volumes[1].cloudInitNoCloud')).toBe('userData')
    expect(at('spec.template.spec.domain.devices.interfaces[0].macAddress')).toBe('nics.0.mac')
    expect(at('spec.template.spec.domain.memory.guest')).toBe('memoryGi')
    expect(at('spec.unheardOf')).toBeUndefined()
  })
})

describe('a machine that is edited', () => {
  const base = (): VM => {
    const { vm } = compose({ ...wanted, labels: [['app', 'web']] }, 'web')
    const domain = spec(vm).domain as Record<string, unknown>
    domain.clock = { utc: {} }
    spec(vm).tolerations = [{ key: 'x' }]
    vm.metadata.labels!['kubevirt.io/other'] = 'y'
    return vm
  }
  const texts = { userData: '', networkData: '' }

  it('is the same when nothing was changed', () => {
    const vm = base()
    const form = read(vm, { userData: `#cloud-config\nssh_authorized_keys:\n  - ${KEY}\n`, networkData: '' })
    expect(compose(form, 'web', vm).vm).toEqual(vm)
  })

  it('keeps what others wrote in other words', () => {
    const other = { metadata: { name: 'v', namespace: 'd', uid: 'u', resourceVersion: '1' }, spec: {
      runStrategy: 'Always', instancetype: undefined,
      template: { spec: {
        domain: { resources: { requests: { memory: '2048Mi' } }, firmware: { bootloader: { efi: {} } }, features: { smm: { enabled: true } }, devices: { tpm: {}, disks: [{ name: 'a', disk: {} }, { name: 'ci', disk: {} }], interfaces: [{ name: 'x', sriov: {} }, { name: 'y', masquerade: {} }] } },
        networks: [{ name: 'x', multus: { networkName: 'd/fast' } }, { name: 'y', pod: {} }],
        volumes: [{ name: 'a', dataVolume: { name: 'dv' } }, { name: 'ci', cloudInitNoCloud: { userData: '#cloud-config' } }],
      } },
    } } as unknown as VM
    expect(secretOf(other), 'inline data is not ours').toBeUndefined()
    const form = read(other, undefined)
    const next = compose(form, 'v', other).vm
    expect(next.spec).toEqual(JSON.parse(JSON.stringify(other.spec)))
    const typed = { ...other, spec: { ...other.spec, instancetype: { name: 'small', revisionName: 'r1' } } } as VM
    expect(compose(read(typed, undefined), 'v', typed).vm.spec.instancetype).toEqual({ name: 'small', revisionName: 'r1' })
  })

  it('keeps what the form does not know', () => {
    const vm = base()
    const form = read(vm, texts)
    const next = compose({ ...form, userData: '#cloud-config\npassword: x', cpus: 4, labels: [['tier', 'a']], disks: [...form.disks, { ...root, name: 'data1', source: 'new' }] }, 'web', vm).vm
    expect((spec(next).domain as Record<string, unknown>).clock).toEqual({ utc: {} })
    expect(spec(next).tolerations).toEqual([{ key: 'x' }])
    expect(next.metadata.labels).toEqual({ 'harvesterhci.io/vmName': 'web', 'kubevirt.io/other': 'y', tier: 'a' })
    expect(spec(next).domain.cpu).toEqual({ cores: 4 })
    expect(claimsOf(next).own).toEqual(['web-root', 'web-data1'])
  })

  it('lets a disk go, and its claim stay', () => {
    const vm = base()
    const next = compose({ ...read(vm, texts), disks: [], userData: '#cloud-config\n' }, 'web', vm).vm
    expect(claimsOf(next)).toEqual({ own: [], others: [] })
    expect(spec(next).domain.devices?.disks?.map((d) => d.name)).toEqual(['cloudinit'])
  })
})

describe('cloud-init', () => {
  it('is checked, line by line', () => {
    expect(checkUser('', [])).toEqual([])
    expect(checkUser('packages: [x]', [])).toEqual([{ line: 1, key: 'cloud.bad.first' }])
    expect(checkUser('#cloud-config\npackages: [x', [])[0]).toMatchObject({ key: 'cloud.bad.yaml' })
    expect(checkUser('#cloud-config\n- a', [])).toEqual([{ line: 2, key: 'cloud.bad.map' }])
    expect(checkUser('#cloud-config\npackages: [x]\npackges: [y]\n', [])).toEqual([{ line: 3, key: 'cloud.bad.key', values: { name: 'packges' } }])
    expect(checkUser('#!/bin/sh\n', [])).toEqual([])
    expect(checkUser('#!/bin/sh\n', [KEY])).toEqual([{ line: 1, key: 'cloud.bad.keys' }])
  })
  it('knows network data of both versions', () => {
    expect(checkNetwork('version: 2\nethernets: {}\n')).toEqual([])
    expect(checkNetwork('network:\n  version: 1\n  config: []\n')).toEqual([])
    expect(checkNetwork('ethernets: {}')).toEqual([{ line: 1, key: 'cloud.bad.version' }])
    expect(checkNetwork('version: 1\nethernets: {}')[0]).toMatchObject({ key: 'cloud.bad.network' })
  })
  it('takes keys beside those that are there, and keeps comments', () => {
    expect(withKeys('#cloud-config\n# mine\nssh_authorized_keys:\n  - a\n', ['a', 'b'])).toBe('#cloud-config\n# mine\nssh_authorized_keys:\n  - a\n  - b\n')
    expect(withKeys('#cloud-config\npassword: x\n', [])).toBe('#cloud-config\npassword: x\n')
    expect(withKeys('', [])).toBe('')
  })
})

it('knows names and keys', () => {
  expect([validName('a'), validName('a-1'), validName('-a'), validName('a.b'), validName('x'.repeat(64))]).toEqual([true, true, false, false, false])
  expect(keyComplaint('-----BEGIN OPENSSH PRIVATE KEY-----')).toBe('create.bad.private')
  expect(keyComplaint(KEY)).toBeUndefined()
  expect(nameOf('C:\\Images\\Debian 12_generic.qcow2')).toBe('debian-12-generic')
  expect([quoted('a/b:c'), quoted("it's")]).toEqual(['a/b:c', "'it'\\''s'"])
  expect(kubectl('create', [{ a: 1 }])).toBe("kubectl create -f - <<'EOF'\na: 1\nEOF")
})
