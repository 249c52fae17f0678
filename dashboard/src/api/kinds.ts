// Where the kinds are, and what is done to their objects.

import { json, send } from './http'
import { live, type Collection } from './watch'
import type { Claim, Event, Image, KeyPair, Namespace, Node, Obj, VM, VMI } from './types'

export interface Kind {
  base: string
  plural: string
  namespaced: boolean
}

const kind = (base: string, plural: string, namespaced = true): Kind => ({ base, plural, namespaced })

export const VMS = kind('apis/kubevirt.io/v1', 'virtualmachines')
export const VMIS = kind('apis/kubevirt.io/v1', 'virtualmachineinstances')
export const IMAGES = kind('apis/harvesterhci.io/v1beta1', 'virtualmachineimages')
export const KEYPAIRS = kind('apis/harvesterhci.io/v1beta1', 'keypairs')
export const NETWORKS = kind('apis/k8s.cni.cncf.io/v1', 'network-attachment-definitions')
export const NODES = kind('api/v1', 'nodes', false)
export const NAMESPACES = kind('api/v1', 'namespaces', false)
export const CLAIMS = kind('api/v1', 'persistentvolumeclaims')
export const SECRETS = kind('api/v1', 'secrets')
export const EVENTS = kind('api/v1', 'events')

const e = encodeURIComponent

/** The path of a kind's objects (of a namespace), or of one. */
export function path(kind: Kind, namespace = '', name = ''): string {
  const place = kind.namespaced && namespace ? `${kind.base}/namespaces/${e(namespace)}` : kind.base
  return name ? `${place}/${kind.plural}/${e(name)}` : `${place}/${kind.plural}`
}

export const vms = (): Collection<VM> => live<VM>(path(VMS))
export const vmis = (): Collection<VMI> => live<VMI>(path(VMIS))
export const images = (): Collection<Image> => live<Image>(path(IMAGES))
export const nodes = (): Collection<Node> => live<Node>(path(NODES))
export const claims = (): Collection<Claim> => live<Claim>(path(CLAIMS))
export const keypairs = (): Collection<KeyPair> => live<KeyPair>(path(KEYPAIRS))
export const networks = (): Collection<Obj> => live<Obj>(path(NETWORKS))
export const namespaces = (): Collection<Namespace> => live<Namespace>(path(NAMESPACES))
export const events = (): Collection<Event> => live<Event>(path(EVENTS))

export const create = <T extends Obj>(kind: Kind, namespace: string, body: unknown, dryRun = false): Promise<T> =>
  json<T>(`${path(kind, namespace)}?fieldManager=sheaf-dashboard${dryRun ? '&dryRun=All' : ''}`, { method: 'POST', body })

export const merge = <T extends Obj>(kind: Kind, namespace: string, name: string, body: unknown): Promise<T> =>
  json<T>(path(kind, namespace, name), { method: 'PATCH', body: JSON.stringify(body), type: 'application/merge-patch+json' })

export const remove = async (kind: Kind, o: Obj): Promise<void> => {
  await send(path(kind, o.metadata.namespace, o.metadata.name), { method: 'DELETE' })
}

export type VmAction = 'start' | 'stop' | 'restart' | 'pause' | 'unpause'

/** Asks for a change of a VM's state. The answer says that it was asked for, and not that it is done. */
export async function act(vm: Obj, action: VmAction): Promise<void> {
  const plural = action === 'pause' || action === 'unpause' ? 'virtualmachineinstances' : 'virtualmachines'
  await send(`apis/subresources.kubevirt.io/v1/namespaces/${e(vm.metadata.namespace ?? '')}/${plural}/${e(vm.metadata.name)}/${action}`, {
    method: 'PUT',
    body: {},
  })
}

/** The path of a stream of a VM's instance. */
export const stream = (namespace: string, name: string, sub: string): string =>
  `apis/subresources.kubevirt.io/v1/namespaces/${e(namespace)}/virtualmachineinstances/${e(name)}/${sub}`
