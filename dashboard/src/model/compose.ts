// From the form of a new VM to objects: a VM that brings its disk along, and a secret with its cloud-init data. The same
// shapes as `sheaf vm create` makes. Pure.

import type { Key } from '@/i18n'

export interface Wanted {
  namespace: string
  name: string
  /** NAMESPACE/NAME */
  image: string
  cpus: number
  memoryGi: number
  diskGi: number
  /** Empty for the management network, else NAMESPACE/NAME. */
  network: string
  keys: string[]
  userData: string
  start: boolean
}

export type Complaints = Partial<Record<'name' | 'image' | 'cpus' | 'memory' | 'disk' | 'key' | 'userData', [Key, Record<string, string | number>?]>>

export const validName = (name: string): boolean => /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(name)

/** What is wrong with a text that should be one public key, if anything. */
export function keyComplaint(text: string): Key | undefined {
  const line = text.trim()
  if (line.startsWith('-----BEGIN')) return 'create.bad.private'
  return /^(ssh|ecdsa|sk-ssh|sk-ecdsa)-\S+\s+[A-Za-z0-9+/=]{16,}(\s.*)?$/.test(line) ? undefined : 'create.bad.key'
}

export function check(wanted: Wanted, taken: boolean, diskMin: number): Complaints {
  const bad: Complaints = {}
  if (!validName(wanted.name)) bad.name = ['create.bad.name']
  else if (taken) bad.name = ['create.bad.taken', { namespace: wanted.namespace }]
  if (!wanted.image) bad.image = ['create.bad.image']
  if (!(Number.isInteger(wanted.cpus) && wanted.cpus >= 1)) bad.cpus = ['create.bad.number', { min: 1 }]
  if (!(wanted.memoryGi >= 0.0625)) bad.memory = ['create.bad.number', { min: 0.0625 }]
  const least = Math.max(diskMin, 0.01)
  if (!(wanted.diskGi >= least)) bad.disk = ['create.bad.number', { min: Math.ceil(least * 100) / 100 }]
  for (const key of wanted.keys) {
    const complaint = keyComplaint(key)
    if (complaint) bad.key = [complaint]
  }
  const data = wanted.userData.trim()
  const cloudConfig = /^#cloud-config\s*(\n|$)/.test(data)
  if (data && wanted.keys.length && (!cloudConfig || /^ssh_authorized_keys\s*:/m.test(data))) bad.userData = ['create.bad.userData']
  return bad
}

/** Cloud-init user data with the keys, or nothing. */
export function userData(given: string, keys: string[]): string {
  const data = given.trim()
  if (!keys.length) return data && `${data}\n`
  const list = keys.map((key) => `  - ${JSON.stringify(key.trim())}`).join('\n')
  return `${data || '#cloud-config'}\nssh_authorized_keys:\n${list}\n`
}

const size = (gi: number): string => (Number.isInteger(gi) ? `${gi}Gi` : `${Math.round(gi * 1024)}Mi`)

export function compose(wanted: Wanted): { vm: object; secret?: object } {
  const { name, namespace } = wanted
  const labels = { 'harvesterhci.io/vmName': name }
  const data = userData(wanted.userData, wanted.keys)
  const secretName = `${name}-cloudinit`
  const disks: object[] = [{ name: 'root', bootOrder: 1, disk: { bus: 'virtio' } }]
  const volumes: object[] = [{ name: 'root', persistentVolumeClaim: { claimName: `${name}-root` } }]
  if (data) {
    disks.push({ name: 'cloudinit', disk: { bus: 'virtio' } })
    volumes.push({ name: 'cloudinit', cloudInitNoCloud: { secretRef: { name: secretName } } })
  }
  const claim = {
    metadata: { name: `${name}-root`, annotations: { 'harvesterhci.io/imageId': wanted.image } },
    spec: { accessModes: ['ReadWriteOnce'], volumeMode: 'Block', resources: { requests: { storage: size(wanted.diskGi) } } },
  }
  const vm = {
    apiVersion: 'kubevirt.io/v1',
    kind: 'VirtualMachine',
    metadata: { name, namespace, labels, annotations: { 'harvesterhci.io/volumeClaimTemplates': JSON.stringify([claim]) } },
    spec: {
      runStrategy: wanted.start ? 'Always' : 'Halted',
      template: {
        metadata: { labels },
        spec: {
          terminationGracePeriodSeconds: 120,
          domain: {
            cpu: { cores: wanted.cpus },
            memory: { guest: size(wanted.memoryGi) },
            devices: {
              disks,
              interfaces: [{ name: 'default', model: 'virtio', ...(wanted.network ? { bridge: {} } : { masquerade: {} }) }],
            },
          },
          networks: [{ name: 'default', ...(wanted.network ? { multus: { networkName: wanted.network } } : { pod: {} }) }],
          volumes,
        },
      },
    },
  }
  const secret = data
    ? { apiVersion: 'v1', kind: 'Secret', metadata: { name: secretName, namespace, labels }, stringData: { userdata: data } }
    : undefined
  return { vm, secret }
}

/** The command that does the same. */
export function command(wanted: Wanted): string {
  const parts = ['sheaf vm create', `-n ${wanted.namespace}`, wanted.name || 'NAME', `--image ${wanted.image || 'IMAGE'}`, `--cpus ${wanted.cpus}`, `--memory ${size(wanted.memoryGi)}`, `--disk ${size(wanted.diskGi)}`]
  if (wanted.network) parts.push(`--network ${wanted.network}`)
  if (wanted.keys.length) parts.push('--ssh-key FILE.pub')
  if (wanted.userData.trim()) parts.push('--user-data FILE')
  if (!wanted.start) parts.push('--run-strategy halted')
  return parts.join(' ')
}
