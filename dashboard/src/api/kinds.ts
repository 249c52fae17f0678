// Where the kinds are, and what is done to their objects.

import { namespace as chosen } from '@/ui/prefs'
import { can } from './access'
import { json, send } from './http'
import { live, type Collection } from './watch'
import type { Claim, Event, Image, KeyPair, Namespace, Node, Obj, Snapshot, StorageClass, VM, VMI } from './types'

export interface Kind {
  base: string
  plural: string
  namespaced: boolean
  /** As objects and commands name it. */
  kind: string
}

const kind = (base: string, plural: string, name: string, namespaced = true): Kind => ({ base, plural, namespaced, kind: name })

export const VMS = kind('apis/kubevirt.io/v1', 'virtualmachines', 'VirtualMachine')
export const VMIS = kind('apis/kubevirt.io/v1', 'virtualmachineinstances', 'VirtualMachineInstance')
export const IMAGES = kind('apis/harvesterhci.io/v1beta1', 'virtualmachineimages', 'VirtualMachineImage')
export const KEYPAIRS = kind('apis/harvesterhci.io/v1beta1', 'keypairs', 'KeyPair')
export const NETWORKS = kind('apis/k8s.cni.cncf.io/v1', 'network-attachment-definitions', 'NetworkAttachmentDefinition')
export const NODES = kind('api/v1', 'nodes', 'Node', false)
export const NAMESPACES = kind('api/v1', 'namespaces', 'Namespace', false)
export const CLAIMS = kind('api/v1', 'persistentvolumeclaims', 'PersistentVolumeClaim')
export const SECRETS = kind('api/v1', 'secrets', 'Secret')
export const EVENTS = kind('api/v1', 'events', 'Event')

export const QUOTAS = kind('api/v1', 'resourcequotas', 'ResourceQuota')
export const LIMITS = kind('api/v1', 'limitranges', 'LimitRange')
export const ACCOUNTS = kind('api/v1', 'serviceaccounts', 'ServiceAccount')
export const CLASSES = kind('apis/storage.k8s.io/v1', 'storageclasses', 'StorageClass', false)
export const ROLES = kind('apis/rbac.authorization.k8s.io/v1', 'roles', 'Role')
export const CLUSTER_ROLES = kind('apis/rbac.authorization.k8s.io/v1', 'clusterroles', 'ClusterRole', false)
export const BINDINGS = kind('apis/rbac.authorization.k8s.io/v1', 'rolebindings', 'RoleBinding')
export const CLUSTER_BINDINGS = kind('apis/rbac.authorization.k8s.io/v1', 'clusterrolebindings', 'ClusterRoleBinding', false)
export const SETTINGS = kind('apis/harvesterhci.io/v1beta1', 'settings', 'Setting', false)
export const SNAPSHOTS = kind('apis/snapshot.kubevirt.io/v1beta1', 'virtualmachinesnapshots', 'VirtualMachineSnapshot')
export const RESTORES = kind('apis/snapshot.kubevirt.io/v1beta1', 'virtualmachinerestores', 'VirtualMachineRestore')
export const CLONES = kind('apis/clone.kubevirt.io/v1beta1', 'virtualmachineclones', 'VirtualMachineClone')
export const MIGRATIONS = kind('apis/kubevirt.io/v1', 'virtualmachineinstancemigrations', 'VirtualMachineInstanceMigration')
export const TYPES = kind('apis/instancetype.kubevirt.io/v1beta1', 'virtualmachineinstancetypes', 'VirtualMachineInstancetype')
export const CLUSTER_TYPES = kind('apis/instancetype.kubevirt.io/v1beta1', 'virtualmachineclusterinstancetypes', 'VirtualMachineClusterInstancetype', false)
export const PREFERENCES = kind('apis/instancetype.kubevirt.io/v1beta1', 'virtualmachinepreferences', 'VirtualMachinePreference')
export const CLUSTER_PREFERENCES = kind('apis/instancetype.kubevirt.io/v1beta1', 'virtualmachineclusterpreferences', 'VirtualMachineClusterPreference', false)

const e = encodeURIComponent

/** The path of a kind's objects (of a namespace), or of one. */
export function path(kind: Kind, namespace = '', name = ''): string {
  const place = kind.namespaced && namespace ? `${kind.base}/namespaces/${e(namespace)}` : kind.base
  return name ? `${place}/${kind.plural}/${e(name)}` : `${place}/${kind.plural}`
}

/** The live objects of a kind that the user may see: all, those of the chosen namespace, or none. */
export function all<T extends Obj = Obj>(kind: Kind): Collection<T> {
  if (can('list', kind)) return live<T>(path(kind))
  const may = kind.namespaced && chosen.value && can('list', kind, chosen.value)
  return live<T>(may ? path(kind, chosen.value) : '')
}

export const vms = (): Collection<VM> => all<VM>(VMS)
export const vmis = (): Collection<VMI> => all<VMI>(VMIS)
export const images = (): Collection<Image> => all<Image>(IMAGES)
export const nodes = (): Collection<Node> => all<Node>(NODES)
export const claims = (): Collection<Claim> => all<Claim>(CLAIMS)
export const keypairs = (): Collection<KeyPair> => all<KeyPair>(KEYPAIRS)
export const networks = (): Collection<Obj> => all<Obj>(NETWORKS)
export const namespaces = (): Collection<Namespace> => all<Namespace>(NAMESPACES)
export const events = (): Collection<Event> => all<Event>(EVENTS)
export const snapshots = (): Collection<Snapshot> => all<Snapshot>(SNAPSHOTS)
export const classes = (): Collection<StorageClass> => all<StorageClass>(CLASSES)

const managed = (dryRun: boolean): string => `?fieldManager=sheaf-dashboard&fieldValidation=Strict${dryRun ? '&dryRun=All' : ''}`

export const create = <T extends Obj>(kind: Kind, namespace: string, body: unknown, dryRun = false): Promise<T> =>
  json<T>(`${path(kind, namespace)}${managed(dryRun)}`, { method: 'POST', body })

export const merge = <T extends Obj>(kind: Kind, namespace: string, name: string, body: unknown, dryRun = false): Promise<T> =>
  json<T>(`${path(kind, namespace, name)}${managed(dryRun)}`, { method: 'PATCH', body: JSON.stringify(body), type: 'application/merge-patch+json' })

/** Puts an object in the place of the one that was read: refused if somebody changed it meanwhile. */
export const replace = <T extends Obj>(kind: Kind, object: T, dryRun = false): Promise<T> =>
  json<T>(`${path(kind, object.metadata.namespace, object.metadata.name)}${managed(dryRun)}`, { method: 'PUT', body: object })

export const read = <T extends Obj>(kind: Kind, namespace: string, name: string): Promise<T> => json<T>(path(kind, namespace, name))

export const remove = async (kind: Kind, o: Obj): Promise<void> => {
  await send(path(kind, o.metadata.namespace, o.metadata.name), { method: 'DELETE' })
}

export type VmAction = 'start' | 'stop' | 'restart' | 'pause' | 'unpause' | 'migrate' | 'softreboot' | 'reset'
const OF_INSTANCE: VmAction[] = ['pause', 'unpause', 'softreboot', 'reset']
export const pluralOf = (action: VmAction): string => (OF_INSTANCE.includes(action) ? 'virtualmachineinstances' : 'virtualmachines')

/** Calls a subresource of a machine. The answer says that it was asked for, and not that it is done. */
export const call = (namespace: string, plural: string, name: string, sub: string, body: unknown = {}): Promise<Response> =>
  send(`apis/subresources.kubevirt.io/v1/namespaces/${e(namespace)}/${plural}/${e(name)}/${sub}`, { method: 'PUT', body })

export async function act(vm: Obj, action: VmAction): Promise<void> {
  await call(vm.metadata.namespace ?? '', pluralOf(action), vm.metadata.name, action)
}

export interface Token { token: string; expirationTimestamp: string }
/** A token of a service account that is good for so many seconds. */
export async function tokenOf(account: Obj, expirationSeconds: number): Promise<Token> {
  const body = { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds } }
  const answer = await json<{ status: Token }>(`${path(ACCOUNTS, account.metadata.namespace, account.metadata.name)}/token`, { method: 'POST', body })
  return answer.status
}

/** The path of a stream of a VM's instance. */
export const stream = (namespace: string, name: string, sub: string): string =>
  `apis/subresources.kubevirt.io/v1/namespaces/${e(namespace)}/virtualmachineinstances/${e(name)}/${sub}`
