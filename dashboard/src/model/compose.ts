// From the form of a machine to objects, and back: a VM that brings its disks along, and a Secret with its cloud-init data.
// What the form does not know stays as it is in a VM that is edited. Pure.

import type { Key } from '@/i18n'
import type { Disk, MachineSpec, Matcher, Nic, Volume, VM } from '@/api/types'
import { HOST, readApart, TOGETHER, writeApart, type ApartWanted } from './apart'
import { claimName, TEMPLATES, templatesOf } from './claims'
import { gibibytes, quantity } from './format'
import { NO_DEVICES, readDevices, writeDevices, type DevicesWanted } from './devices'
import { checkNetwork, checkUser, withKeys } from './cloudinit'

export interface DiskWanted {
  name: string
  /** Where its data comes from; `kept` is one that the machine has already. */
  source: 'image' | 'new' | 'claim' | 'kept'
  cdrom: boolean
  /** NAMESPACE/NAME */
  image: string
  sizeGi: number
  claim: string
  storageClass: string
  bus: string
}

export interface NicWanted {
  name: string
  /** Empty for the management network, else NAMESPACE/NAME. */
  network: string
  model: string
  mac: string
}

export type Pair = [string, string]

export interface Wanted extends DevicesWanted, ApartWanted {
  namespace: string
  name: string
  count: number
  description: string
  cpus: number
  memoryGi: number
  /** Processors and memory may grow while it runs. */
  grows: boolean
  /** Empty, or KIND/NAME. */
  instancetype: string
  preference: string
  disks: DiskWanted[]
  nics: NicWanted[]
  keys: string[]
  /** NAMESPACE/NAME of the KeyPairs among them, as other clients show them. */
  keyNames: string[]
  userData: string
  networkData: string
  /** The cloud-init disk is not ours to write: it stays as it is. */
  keepCloudInit: boolean
  runStrategy: string
  firmware: 'bios' | 'efi' | 'secure'
  node: string
  selector: Pair[]
  labels: Pair[]
  hostname: string
  grace: number
}

export const fresh = (namespace: string): Wanted => ({
  namespace, name: '', count: 1, description: '', cpus: 1, memoryGi: 1, grows: false, instancetype: '', preference: '',
  disks: [{ name: 'root', source: 'image', cdrom: false, image: '', sizeGi: 10, claim: '', storageClass: '', bus: 'virtio' }],
  nics: [{ name: 'default', network: '', model: 'virtio', mac: '' }],
  keys: [], keyNames: [], userData: '', networkData: '', keepCloudInit: false, runStrategy: 'Always', firmware: 'bios', ...NO_DEVICES, ...TOGETHER, node: '', selector: [], labels: [], hostname: '', grace: 120,
})

/** By the place in the form: `name`, `disks.1.sizeGi`. */
export type Complaint = [Key, Record<string, string | number>?, Key?]
export type Complaints = Record<string, Complaint>

export const MOST = 100
const RESERVED = /(^|\.)(harvesterhci\.io|kubevirt\.io|kubernetes\.io|sheaf\.io)\//
const IMAGE = 'harvesterhci.io/imageId'
const NAMES = 'harvesterhci.io/sshNames'
const TEXT = 'field.cattle.io/description'

export const validName = (name: string): boolean => /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(name)
const validLabel = (text: string): boolean => text === '' || (text.length <= 63 && /^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$/.test(text))
const validKey = (text: string): boolean => {
  const [prefix, name] = text.includes('/') ? [text.slice(0, text.indexOf('/')), text.slice(text.indexOf('/') + 1)] : ['', text]
  return !!name && validLabel(name) && (!prefix || /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/.test(prefix))
}

/** What is wrong with a text that should be one public key, if anything. */
export function keyComplaint(text: string): Key | undefined {
  const line = text.trim()
  if (line.startsWith('-----BEGIN')) return 'create.bad.private'
  return /^(ssh|ecdsa|sk-ssh|sk-ecdsa)-\S+\s+[A-Za-z0-9+/=]{16,}(\s.*)?$/.test(line) ? undefined : 'create.bad.key'
}

/** The names of all machines that are wanted. */
export function names(wanted: Pick<Wanted, 'name' | 'count'>): string[] {
  if (wanted.count <= 1) return [wanted.name]
  const digits = Math.max(2, String(wanted.count).length)
  return Array.from({ length: Math.min(wanted.count, MOST) }, (_, n) => `${wanted.name}-${String(n + 1).padStart(digits, '0')}`)
}

export interface World {
  taken: (namespace: string, name: string) => boolean
  /** Least size of an image's disk in GiB. */
  imageGi: (image: string) => number
  editing?: boolean
}

export function check(wanted: Wanted, world: World): Complaints {
  const bad: Complaints = {}
  const number = (at: string, value: number, min: number): void => {
    if (!(Number(value) >= min)) bad[at] = ['create.bad.number', { min: Math.ceil(min * 100) / 100 }]
  }
  if (!(Number.isInteger(wanted.count) && wanted.count >= 1 && wanted.count <= MOST)) bad.count = ['create.bad.count', { max: MOST }]
  else if (!world.editing) {
    const all = names(wanted)
    const taken = all.find((n) => world.taken(wanted.namespace, n))
    if (!all.every(validName)) bad.name = ['create.bad.name']
    else if (taken) bad.name = ['create.bad.taken', { namespace: wanted.namespace, name: taken }]
  }
  if (!wanted.instancetype) {
    if (!(Number.isInteger(wanted.cpus) && wanted.cpus >= 1)) bad.cpus = ['create.bad.number', { min: 1 }]
    number('memoryGi', wanted.memoryGi, 0.0625)
  }
  wanted.disks.forEach((disk, n) => {
    const at = `disks.${n}`
    if (!validName(disk.name)) bad[`${at}.name`] = ['create.bad.name']
    else if (wanted.disks.some((d, m) => m < n && d.name === disk.name) || disk.name === 'cloudinit') bad[`${at}.name`] = ['create.bad.twice', { name: disk.name }]
    if (disk.source === 'image' && !disk.image) bad[`${at}.image`] = ['create.bad.image']
    if (disk.source === 'claim' && !disk.claim) bad[`${at}.claim`] = ['create.bad.claim']
    if (disk.source === 'claim' && wanted.count > 1) bad[`${at}.claim`] = ['create.bad.shared']
    if (disk.source === 'image' || disk.source === 'new') number(`${at}.sizeGi`, disk.sizeGi, Math.max(0.01, disk.source === 'image' ? world.imageGi(disk.image) : 0))
  })
  wanted.nics.forEach((nic, n) => {
    if (!validName(nic.name)) bad[`nics.${n}.name`] = ['create.bad.name']
    else if (wanted.nics.some((m, k) => k < n && m.name === nic.name)) bad[`nics.${n}.name`] = ['create.bad.twice', { name: nic.name }]
    if (nic.mac && !/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(nic.mac)) bad[`nics.${n}.mac`] = ['create.bad.mac']
    else if (nic.mac && wanted.count > 1) bad[`nics.${n}.mac`] = ['create.bad.sharedMac']
    if (!nic.network && wanted.nics.some((m, k) => k < n && !m.network)) bad[`nics.${n}.network`] = ['create.bad.management']
  })
  for (const key of wanted.keys) {
    const complaint = keyComplaint(key)
    if (complaint) bad.key = [complaint]
  }
  const user = checkUser(wanted.userData, wanted.keys)[0]
  if (user) bad.userData = ['cloud.at', { line: user.line, ...user.values }, user.key]
  const network = checkNetwork(wanted.networkData)[0]
  if (network) bad.networkData = ['cloud.at', { line: network.line, ...network.values }, network.key]
  for (const [field, pairs] of [['labels', wanted.labels], ['selector', wanted.selector]] as const) {
    pairs.forEach(([key, value], n) => {
      if (!validKey(key) || !validLabel(value)) bad[`${field}.${n}`] = ['create.bad.label']
    })
  }
  if (wanted.hostname && !validName(wanted.hostname)) bad.hostname = ['create.bad.name']
  number('grace', wanted.grace, 0)
  if (!validLabel(wanted.group)) bad.group = ['create.bad.group']
  if (wanted.group && !validKey(wanted.apartBy)) bad.apartBy = ['create.bad.labelKey']
  return bad
}

const clone = <T>(value: T): T => JSON.parse(JSON.stringify(value)) as T
const matcher = (text: string): Matcher | undefined => {
  const [kind, name] = text.split('/')
  return name ? { kind, name } : undefined
}
const matched = (m: Matcher | undefined): string => (m?.name ? `${m.kind ?? ''}/${m.name}` : '')

const isCloudInit = (v: Volume): boolean => !!v.cloudInitNoCloud || 'cloudInitConfigDrive' in v

/** Upstream's, where a VM says nothing. */
const GRACE = 180
function firmwareOf(spec: MachineSpec): Wanted['firmware'] {
  const efi = spec.domain.firmware?.bootloader?.efi
  return efi ? (efi.secureBoot === false ? 'efi' : 'secure') : 'bios'
}
const cpusOf = (spec: MachineSpec): number => (spec.domain.cpu?.cores ?? 1) * (spec.domain.cpu?.sockets ?? 1) * (spec.domain.cpu?.threads ?? 1)
const memoryOf = (spec: MachineSpec): number => (quantity(spec.domain.memory?.guest ?? spec.domain.resources?.requests?.memory) || 2 ** 30) / 2 ** 30
const growsOf = (spec: MachineSpec): boolean => !!spec.domain.cpu?.maxSockets || !!spec.domain.memory?.maxGuest

/** What a form shows of a machine that is there. Its cloud-init texts are in a Secret; without them, that disk stays as it is. */
export function read(vm: VM, texts: { userData: string; networkData: string } | undefined): Wanted {
  const spec = vm.spec.template.spec
  const { [HOST]: node = '', ...selector } = spec.nodeSelector ?? {}
  const disks = (spec.volumes ?? []).filter((v) => !isCloudInit(v)).map((v): DiskWanted => {
    const disk = spec.domain.devices?.disks?.find((d) => d.name === v.name)
    return { name: v.name, source: 'kept', cdrom: !!disk?.cdrom, image: '', sizeGi: 0, claim: claimName(v), storageClass: '', bus: disk?.cdrom?.bus ?? disk?.disk?.bus ?? disk?.lun?.bus ?? 'virtio' }
  })
  const nics = (spec.domain.devices?.interfaces ?? []).filter((i) => i.state !== 'absent').map((i): NicWanted => ({
    name: i.name, network: spec.networks?.find((n) => n.name === i.name)?.multus?.networkName ?? '', model: i.model ?? 'virtio', mac: i.macAddress ?? '',
  }))
  return {
    ...fresh(vm.metadata.namespace ?? ''), name: vm.metadata.name, description: vm.metadata.annotations?.[TEXT] ?? '',
    cpus: cpusOf(spec), memoryGi: memoryOf(spec), grows: growsOf(spec), instancetype: matched(vm.spec.instancetype), preference: matched(vm.spec.preference),
    disks, nics, ...(texts ?? { userData: '', networkData: '' }), keepCloudInit: !texts, runStrategy: vm.spec.runStrategy ?? (vm.spec.running ? 'Always' : 'Halted'),
    firmware: firmwareOf(spec), ...readDevices(spec), ...readApart(spec),
    node, selector: Object.entries(selector), labels: Object.entries(vm.metadata.labels ?? {}).filter(([k]) => !RESERVED.test(k)),
    hostname: spec.hostname ?? '', grace: spec.terminationGracePeriodSeconds ?? GRACE,
  }
}

// What is as it was is not written anew in other words: a machine that runs would be told to restart for it.
function sized(wanted: Wanted, vm: VM): void {
  const spec = vm.spec.template.spec
  const domain = spec.domain
  if (matched(vm.spec.instancetype) !== wanted.instancetype) vm.spec.instancetype = matcher(wanted.instancetype)
  if (matched(vm.spec.preference) !== wanted.preference) vm.spec.preference = matcher(wanted.preference)
  if (wanted.instancetype) {
    // The type says it, and the API refuses both.
    delete domain.cpu
    delete domain.memory
    return
  }
  const [cpus, memoryGi, grew] = [cpusOf(spec), memoryOf(spec), growsOf(spec)]
  const blank = !domain.cpu && !domain.memory && !domain.resources
  const { sockets: _s, cores: _c, threads, maxSockets, ...cpu } = domain.cpu ?? {}
  if (blank || cpus !== wanted.cpus || grew !== wanted.grows) {
    const per = (domain.cpu?.cores ?? 1) * (threads ?? 1)
    // Sockets are what can be added to a machine that runs.
    const sockets = maxSockets && wanted.cpus % per === 0 ? wanted.cpus / per : undefined
    if (!wanted.grows) domain.cpu = { ...cpu, cores: wanted.cpus }
    else if (sockets) domain.cpu = { ...domain.cpu, sockets, maxSockets: Math.max(maxSockets ?? 0, sockets) }
    else domain.cpu = { ...cpu, cores: 1, sockets: wanted.cpus, threads: 1, maxSockets: Math.max(maxSockets ?? 0, wanted.cpus * 4) }
  }
  if (blank || memoryGi !== wanted.memoryGi || grew !== wanted.grows) {
    const { maxGuest, ...memory } = domain.memory ?? {}
    const enough = quantity(maxGuest) / 2 ** 30 >= wanted.memoryGi ? maxGuest : gibibytes(wanted.memoryGi * 4)
    domain.memory = { ...memory, guest: gibibytes(wanted.memoryGi), ...(wanted.grows ? { maxGuest: enough } : {}) }
  }
}

function booted(wanted: Wanted, spec: MachineSpec): void {
  const { domain } = spec
  if (firmwareOf(spec) !== wanted.firmware) {
    const { bootloader, ...firmware } = domain.firmware ?? {}
    if (wanted.firmware !== 'bios') domain.firmware = { ...firmware, bootloader: { efi: { ...bootloader?.efi, secureBoot: wanted.firmware === 'secure' } } }
    else if (Object.keys(firmware).length) domain.firmware = firmware
    else delete domain.firmware
    if (wanted.firmware === 'secure') domain.features = { ...domain.features, smm: { enabled: true } }
  }
  writeDevices(wanted, spec)
}

/** Disks, volumes, and the claims that come along. Those that are there keep their place. */
function furnished(wanted: Wanted, vm: VM): void {
  const spec = vm.spec.template.spec
  const devices = (spec.domain.devices ??= {})
  const keep = (name: string): boolean => wanted.disks.some((d) => d.name === name)
  const volumes = (spec.volumes ?? []).filter((v) => isCloudInit(v) || keep(v.name))
  const gone = (spec.volumes ?? []).filter((v) => !volumes.includes(v))
  const disks = (devices.disks ?? []).filter((d) => !gone.some((v) => v.name === d.name))
  const templates = templatesOf(vm).filter((t) => !gone.some((v) => claimName(v) === t.metadata?.name))
  let boot = disks.reduce((n, d) => Math.max(n, d.bootOrder ?? 0), 0)
  for (const want of wanted.disks) {
    if (want.source === 'kept') continue
    const claim = want.source === 'claim' ? want.claim : `${vm.metadata.name}-${want.name}`
    const disk: Disk = want.cdrom ? { name: want.name, cdrom: { bus: want.bus === 'virtio' ? 'sata' : want.bus } } : { name: want.name, disk: { bus: want.bus } }
    disks.push({ ...disk, bootOrder: ++boot })
    volumes.push({ name: want.name, persistentVolumeClaim: { claimName: claim } })
    if (want.source === 'claim') continue
    const metadata = { name: claim, ...(want.source === 'image' ? { annotations: { [IMAGE]: want.image } } : {}) }
    const made = { metadata, spec: { accessModes: ['ReadWriteOnce'], volumeMode: 'Block', ...(want.storageClass ? { storageClassName: want.storageClass } : {}), resources: { requests: { storage: gibibytes(want.sizeGi) } } } }
    templates.push(made)
  }
  // Lists that are not there stay away.
  if (disks.length || devices.disks) devices.disks = disks
  if (volumes.length || spec.volumes) spec.volumes = volumes
  vm.metadata.annotations = { ...vm.metadata.annotations }
  if (templates.length) vm.metadata.annotations[TEMPLATES] = JSON.stringify(templates)
  else delete vm.metadata.annotations[TEMPLATES]
}

function connected(wanted: Wanted, spec: MachineSpec): void {
  const devices = (spec.domain.devices ??= {})
  if (!wanted.nics.length && !devices.interfaces && !spec.networks) return
  const old = { nics: devices.interfaces ?? [], networks: spec.networks ?? [] }
  devices.interfaces = wanted.nics.map((want): Nic => {
    const before = old.nics.find((i) => i.name === want.name)
    const there = old.networks.find((n) => n.name === want.name)?.multus?.networkName ?? ''
    const chosen = { ...((before?.model ?? 'virtio') !== want.model || !before ? { model: want.model } : {}), ...(want.mac ? { macAddress: want.mac.toLowerCase() } : {}) }
    // Whatever binds it to its network (there are more ways than this form knows) goes on doing so.
    if (before && there === want.network) return { ...before, ...chosen }
    const way = want.network ? { bridge: {} } : { masquerade: {} }
    return { name: want.name, ...(before?.model ? { model: before.model } : {}), ...chosen, ...way }
  })
  spec.networks = wanted.nics.map((want) => {
    const before = old.networks.find((n) => n.name === want.name)
    if (before && (before.multus?.networkName ?? '') === want.network) return before
    return want.network ? { name: want.name, multus: { networkName: want.network } } : { name: want.name, pod: {} }
  })
}

/** The Secret that has all of a machine's cloud-init data; undefined where it is kept in another way, and empty without any. */
export function secretOf(vm: VM): string | undefined {
  const volume = vm.spec.template.spec.volumes?.find(isCloudInit)
  if (!volume) return ''
  const source = volume.cloudInitNoCloud
  const [user, network] = [source?.secretRef?.name, source?.networkDataSecretRef?.name]
  return user && (!network || network === user) ? user : undefined
}

/** The cloud-init disk, if there is something on it. Gives what belongs in the Secret. */
function initialised(wanted: Wanted, vm: VM): { name: string; data: Record<string, string> } | undefined {
  if (wanted.keepCloudInit) return undefined
  const spec = vm.spec.template.spec
  const userdata = withKeys(wanted.userData, wanted.keys)
  const networkdata = wanted.networkData.trim() && `${wanted.networkData.trim()}\n`
  const there = spec.volumes?.find((v) => v.cloudInitNoCloud)
  const template = (vm.spec.template.metadata ??= {})
  if (wanted.keyNames.length) template.annotations = { ...template.annotations, [NAMES]: JSON.stringify(wanted.keyNames) }
  if (!userdata && !networkdata) {
    if (there) {
      spec.volumes = spec.volumes?.filter((v) => v !== there)
      if (spec.domain.devices?.disks) spec.domain.devices.disks = spec.domain.devices.disks.filter((d) => d.name !== there.name)
    }
    return undefined
  }
  const name = secretOf(vm) || `${vm.metadata.name}-cloudinit`
  const devices = (spec.domain.devices ??= {})
  if (!there) devices.disks = [...(devices.disks ?? []), { name: 'cloudinit', disk: { bus: 'virtio' } }]
  const volume: Volume = { name: there?.name ?? 'cloudinit', cloudInitNoCloud: { secretRef: { name }, ...(networkdata ? { networkDataSecretRef: { name } } : {}) } }
  spec.volumes = there ? spec.volumes!.map((v) => (v === there ? volume : v)) : [...(spec.volumes ?? []), volume]
  return { name, data: { userdata, ...(networkdata ? { networkdata } : {}) } }
}

export interface Composed {
  vm: VM
  secret?: { apiVersion: string; kind: string; metadata: { name: string; namespace: string; labels?: Record<string, string> }; stringData: Record<string, string> }
}

/** The objects of one machine; `base` is the VM that is edited. */
export function compose(wanted: Wanted, name: string, base?: VM): Composed {
  const own = { 'harvesterhci.io/vmName': name }
  const skeleton = { apiVersion: 'kubevirt.io/v1', kind: 'VirtualMachine', metadata: { name, namespace: wanted.namespace, labels: own }, spec: { template: { metadata: { labels: own }, spec: { domain: { devices: { disks: [], interfaces: [] } }, networks: [], volumes: [] } } } }
  const vm = clone(base ?? (skeleton as unknown as VM))
  const spec = vm.spec.template.spec
  const kept = Object.entries(vm.metadata.labels ?? {}).filter(([k]) => RESERVED.test(k))
  vm.metadata.labels = Object.fromEntries([...kept, ...wanted.labels])
  vm.metadata.annotations = { ...vm.metadata.annotations }
  if (wanted.description.trim()) vm.metadata.annotations[TEXT] = wanted.description.trim()
  else delete vm.metadata.annotations[TEXT]
  delete vm.spec.running
  vm.spec.runStrategy = wanted.runStrategy
  sized(wanted, vm)
  booted(wanted, spec)
  furnished(wanted, vm)
  connected(wanted, spec)
  const selector = Object.fromEntries([...wanted.selector, ...(wanted.node ? [[HOST, wanted.node] as Pair] : [])])
  if (Object.keys(selector).length) spec.nodeSelector = selector
  else delete spec.nodeSelector
  writeApart(wanted, vm)
  if (wanted.hostname) spec.hostname = wanted.hostname
  else delete spec.hostname
  if ((spec.terminationGracePeriodSeconds ?? (base ? GRACE : undefined)) !== wanted.grace) spec.terminationGracePeriodSeconds = wanted.grace
  const data = initialised(wanted, vm)
  const secret = data && { apiVersion: 'v1', kind: 'Secret', metadata: { name: data.name, namespace: wanted.namespace, labels: own }, stringData: data.data }
  // Fields that are undefined would be sent as nothing, and compared as something.
  return { vm: clone(vm), secret }
}

/** Where in the form a complaint of the API about a field of the VM belongs. */
export function place(field: string, vm: VM, wanted: Wanted): string | undefined {
  const spec = vm.spec.template.spec
  const at = (list: { name: string }[] | undefined, n: string): string => list?.[Number(n)]?.name ?? ''
  const disk = /^spec\.template\.spec\.(?:domain\.devices\.disks|volumes)\[(\d+)\]/.exec(field)
  if (disk) {
    const name = at(field.includes('volumes[') ? spec.volumes : spec.domain.devices?.disks, disk[1]!)
    const n = wanted.disks.findIndex((d) => d.name === name)
    return n >= 0 ? `disks.${n}.name` : 'userData'
  }
  const nic = /^spec\.template\.spec\.(?:domain\.devices\.interfaces|networks)\[(\d+)\]/.exec(field)
  if (nic) {
    const n = wanted.nics.findIndex((i) => i.name === at(field.includes('networks[') ? spec.networks : spec.domain.devices?.interfaces, nic[1]!))
    return n >= 0 ? `nics.${n}.${field.includes('macAddress') ? 'mac' : 'network'}` : undefined
  }
  const found = FIELDS.find(([prefix]) => field === prefix || field.startsWith(`${prefix}.`) || field.startsWith(`${prefix}[`))
  return found?.[1]
}

const FIELDS: [string, string][] = [
  ['metadata.name', 'name'], ['metadata.namespace', 'namespace'], ['metadata.labels', 'labels.0'], ['metadata.annotations', 'disks.0.image'],
  ['spec.instancetype', 'instancetype'], ['spec.preference', 'preference'], ['spec.runStrategy', 'runStrategy'],
  ['spec.template.spec.domain.cpu', 'cpus'], ['spec.template.spec.domain.memory', 'memoryGi'], ['spec.template.spec.domain.resources', 'memoryGi'],
  ['spec.template.spec.domain.firmware', 'firmware'], ['spec.template.spec.domain.features', 'firmware'], ...(['tpm', 'rng', 'watchdog', 'sound'] as const).map((d): [string, string] => [`spec.template.spec.domain.devices.${d}`, d]),
  ['spec.template.spec.domain.devices.video', 'graphics'], ['spec.template.spec.domain.devices.autoattachGraphicsDevice', 'graphics'], ['spec.template.spec.affinity', 'group'], ['spec.template.metadata.labels', 'group'],
  ['spec.template.spec.nodeSelector', 'selector.0'], ['spec.template.spec.hostname', 'hostname'], ['spec.template.spec.terminationGracePeriodSeconds', 'grace'],
  ['spec.template.spec.domain.devices.disks', 'disks'], ['spec.template.spec.volumes', 'disks'], ['spec.template.spec.networks', 'nics'], ['spec.template.spec.domain.devices.interfaces', 'nics'],
  ['stringData', 'userData'], ['data', 'userData'],
]

/** The command that does the same, where the program's own command can say it. */
export function command(wanted: Wanted): string | undefined {
  const [root, ...more] = wanted.disks
  const plain = wanted.count === 1 && root?.name === 'root' && root.source === 'image' && !root.cdrom && more.every((d) => d.source === 'new' && !d.cdrom) && wanted.firmware === 'bios'
    && (Object.keys(NO_DEVICES) as (keyof DevicesWanted)[]).every((d) => wanted[d] === NO_DEVICES[d]) && !wanted.group && !wanted.instancetype && !wanted.preference && !wanted.grows && !wanted.labels.length && !wanted.selector.length && !wanted.networkData.trim()
    && !wanted.hostname && !wanted.description && wanted.nics.every((n) => !n.mac && n.model === 'virtio') && !wanted.disks.some((d) => d.storageClass || d.bus !== 'virtio')
  if (!plain || !root) return undefined
  const parts = ['sheaf vm create', `-n ${wanted.namespace}`, wanted.name || 'NAME', `--image ${root.image || 'IMAGE'}`, `--cpus ${wanted.cpus}`, `--memory ${gibibytes(wanted.memoryGi)}`]
  for (const disk of wanted.disks) parts.push(`--disk ${gibibytes(disk.sizeGi)}`)
  if (wanted.nics.length !== 1 || wanted.nics[0]?.network) for (const nic of wanted.nics) parts.push(`--network ${nic.network || 'management'}`)
  for (const name of wanted.keyNames) parts.push(`--ssh-key ${name}`)
  if (wanted.keys.length > wanted.keyNames.length) parts.push('--ssh-key FILE.pub')
  if (wanted.userData.trim()) parts.push('--user-data FILE')
  if (wanted.node) parts.push(`--node ${wanted.node}`)
  if (wanted.runStrategy !== 'Always') parts.push(`--run-strategy ${wanted.runStrategy}`)
  return parts.join(' ')
}
