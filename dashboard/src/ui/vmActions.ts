// Asking for changes of VMs, one or many, and saying what was asked.
import { Pause, Play, RotateCw, Square, StepForward } from 'lucide-vue-next'
import type { Component } from 'vue'
import { act, merge, remove, VMS, type VmAction } from '@/api/kinds'
import type { VM } from '@/api/types'
import { t } from '@/i18n'
import { claimsOf } from '@/model/vm'
import { notify, why } from './toast'

export const icons: Record<VmAction, Component> = { start: Play, stop: Square, restart: RotateCw, pause: Pause, unpause: StepForward }

/** Asks one after the other; every refusal is told with the machine's name. */
export async function ask(vms: VM[], action: VmAction): Promise<void> {
  const done: string[] = []
  for (const vm of vms) {
    try {
      await act(vm, action)
      done.push(vm.metadata.name)
    } catch (error) {
      notify(`${vm.metadata.name}: ${why(error)}`, true)
    }
  }
  if (done.length) notify(t(`vm.asked.${action}`, { name: done.join(', ') }))
}

export async function discard(vms: VM[], disks: boolean): Promise<boolean> {
  const done: string[] = []
  for (const vm of vms) {
    try {
      const { own } = claimsOf(vm)
      if (disks && own.length) {
        const annotations = { 'harvesterhci.io/removedPersistentVolumeClaims': own.join(',') }
        await merge(VMS, vm.metadata.namespace ?? '', vm.metadata.name, { metadata: { annotations } })
      }
      await remove(VMS, vm)
      done.push(vm.metadata.name)
    } catch (error) {
      notify(`${vm.metadata.name}: ${why(error)}`, true)
    }
  }
  if (done.length) notify(t('vm.asked.delete', { name: done.join(', ') }))
  return done.length === vms.length
}
