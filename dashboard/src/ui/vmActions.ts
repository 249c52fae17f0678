// Asking for changes of VMs, one or many, and saying what was asked.
import { ArrowRightLeft, Pause, Play, Power, RotateCcw, RotateCw, Square, StepForward } from 'lucide-vue-next'
import type { Component } from 'vue'
import { canAct } from '@/api/access'
import { act, merge, pluralOf, remove, VMS, type VmAction } from '@/api/kinds'
import type { VM } from '@/api/types'
import { t } from '@/i18n'
import { claimsOf } from '@/model/vm'
import { notify, why } from './toast'

export const icons: Record<VmAction, Component> = { start: Play, stop: Square, restart: RotateCw, pause: Pause, unpause: StepForward, migrate: ArrowRightLeft, softreboot: RotateCcw, reset: Power }

/** Whether the user may ask for it. */
export const allowed = (vm: VM, action: VmAction): boolean => canAct(action, vm.metadata.namespace ?? '', pluralOf(action))

/** Requests under way at the same time. */
const TOGETHER = 6
/** Names that a notice lists. */
const NAMED = 4

const list = (names: string[]): string => (names.length > NAMED ? t('app.andMore', { list: names.slice(0, NAMED).join(', '), n: names.length - NAMED }) : names.join(', '))

/** Does something to many, a few at a time; refusals are told with the machine's name, and counted where there are many. */
async function each(vms: VM[], work: (vm: VM) => Promise<void>): Promise<string[]> {
  const [done, failed, waiting]: [string[], string[], VM[]] = [[], [], [...vms]]
  const worker = async (): Promise<void> => {
    for (let vm = waiting.shift(); vm; vm = waiting.shift()) {
      try {
        await work(vm)
        done.push(vm.metadata.name)
      } catch (error) {
        failed.push(`${vm.metadata.name}: ${why(error)}`)
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(TOGETHER, vms.length) }, worker))
  for (const text of failed.slice(0, NAMED)) notify(text, true)
  if (failed.length > NAMED) notify(t('app.failedMore', { n: failed.length - NAMED }), true)
  return done
}

export async function ask(vms: VM[], action: VmAction): Promise<void> {
  const done = await each(vms, (vm) => act(vm, action))
  if (done.length) notify(t(`vm.asked.${action}`, { name: list(done) }))
}

export async function discard(vms: VM[], disks: boolean): Promise<boolean> {
  const done = await each(vms, async (vm) => {
    const { own } = claimsOf(vm)
    if (disks && own.length) {
      const annotations = { 'harvesterhci.io/removedPersistentVolumeClaims': own.join(',') }
      await merge(VMS, vm.metadata.namespace ?? '', vm.metadata.name, { metadata: { annotations } })
    }
    await remove(VMS, vm)
  })
  if (done.length) notify(t('vm.asked.delete', { name: list(done) }))
  return done.length === vms.length
}
