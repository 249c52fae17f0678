// From composed objects to the API: first without effect, so that what is refused leaves nothing behind.
import { ApiError } from '@/api/http'
import * as kinds from '@/api/kinds'
import type { Obj, VM } from '@/api/types'
import type { Composed } from './compose'

const owner = (vm: VM): object => ({ apiVersion: 'kubevirt.io/v1', kind: 'VirtualMachine', name: vm.metadata.name, uid: vm.metadata.uid })

async function createOne({ vm, secret }: Composed): Promise<void> {
  const space = vm.metadata.namespace ?? ''
  const made = secret && (await kinds.create<Obj>(kinds.SECRETS, space, secret))
  let created: VM
  try {
    created = await kinds.create<VM>(kinds.VMS, space, vm)
  } catch (error) {
    if (made) await kinds.remove(kinds.SECRETS, made).catch(() => {})
    throw error
  }
  if (made) await kinds.merge(kinds.SECRETS, space, made.metadata.name, { metadata: { ownerReferences: [owner(created)] } })
}

/** Creates machines one after the other. Where one fails, those before it stay, and the error says which. */
export async function createMachines(all: Composed[], tell: (done: number, all: number) => void): Promise<void> {
  const first = all[0]
  if (!first) return
  await kinds.create(kinds.VMS, first.vm.metadata.namespace ?? '', first.vm, true)
  let done = 0
  for (const one of all) {
    tell(done, all.length)
    try {
      await createOne(one)
    } catch (error) {
      if (!done || !(error instanceof ApiError)) throw error
      throw new ApiError(error.code, error.reason, `${one.vm.metadata.name}: ${error.message} (${done}/${all.length})`, error.causes)
    }
    done++
  }
}

export async function updateMachine(vm: VM, secret: Composed['secret']): Promise<void> {
  const space = vm.metadata.namespace ?? ''
  await kinds.replace(kinds.VMS, vm, true)
  if (secret) {
    const { name } = secret.metadata
    try {
      await kinds.merge(kinds.SECRETS, space, name, { stringData: secret.stringData })
    } catch (error) {
      if (!(error instanceof ApiError && error.code === 404)) throw error
      await kinds.create(kinds.SECRETS, space, { ...secret, metadata: { ...secret.metadata, ownerReferences: [owner(vm)] } })
    }
  }
  await kinds.replace(kinds.VMS, vm)
}
