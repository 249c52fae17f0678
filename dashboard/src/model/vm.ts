// What a VM and its instance say, in words.

import type { VmAction } from '@/api/kinds'
import type { Claim, Condition, Image, VM, VMI } from '@/api/types'
import { condition } from '@/api/watch'
import { t } from '@/i18n'
import { claimName, templatesOf } from './claims'
import { quantity } from './format'

export type Tone = 'good' | 'busy' | 'bad' | 'idle' | 'paused'

export interface State {
  word: string
  tone: Tone
  /** What holds it, where something does. */
  why: string
}

const TONES: Record<string, Tone> = {
  Running: 'good',
  Stopped: 'idle',
  Paused: 'paused',
  Starting: 'busy',
  Provisioning: 'busy',
  Stopping: 'busy',
  Terminating: 'busy',
  Migrating: 'busy',
  WaitingForVolumeBinding: 'busy',
}

/** Conditions in the order in which a start passes them; the first that does not hold says what holds the machine. */
const WAITING = ['Failure', 'PodScheduled', 'DataVolumesReady', 'Synchronized', 'Ready']

function complaint(conditions: Condition[] | undefined): string {
  for (const type of WAITING) {
    const found = condition(conditions, type)
    if (!found) continue
    const wrong = type === 'Failure' ? found.status === 'True' : found.status === 'False'
    if (wrong && found.message) return found.message
  }
  return ''
}

export function vmState(vm: VM, vmi?: VMI): State {
  const word = vm.status?.printableStatus || 'Stopped'
  const tone = TONES[word] ?? 'bad'
  let why = ''
  if (tone !== 'good' && tone !== 'idle' && tone !== 'paused') {
    why = complaint(vm.status?.conditions?.filter((c) => c.type === 'Failure')) || complaint(vmi?.status?.conditions) || complaint(vm.status?.conditions)
  }
  return { word, tone, why }
}

export const running = (vmi: VMI | undefined): boolean => vmi?.status?.phase === 'Running'
export const paused = (vmi: VMI | undefined): boolean => condition(vmi?.status?.conditions, 'Paused')?.status === 'True'

/** The first address of an instance, without a prefix length. */
export function address(vmi: VMI | undefined): string {
  for (const nic of vmi?.status?.interfaces ?? []) {
    const found = [nic.ipAddress, ...(nic.ipAddresses ?? [])].find((a) => a && !a.startsWith('fe80:'))
    if (found) return found.split('/')[0] ?? ''
  }
  return ''
}

export function cores(spec: VM['spec']['template']['spec'] | undefined): number {
  const cpu = spec?.domain.cpu
  return (cpu?.cores ?? 1) * (cpu?.sockets ?? 1) * (cpu?.threads ?? 1)
}

export function memory(spec: VM['spec']['template']['spec'] | undefined): number {
  const domain = spec?.domain
  return quantity(domain?.memory?.guest ?? domain?.resources?.limits?.memory ?? domain?.resources?.requests?.memory)
}

/** What may be asked of a VM as it is. */
export function actions(vm: VM, vmi?: VMI): VmAction[] {
  if (vm.metadata.deletionTimestamp) return []
  const leaving = vmi?.metadata.deletionTimestamp
  const is = !!vmi && !['Succeeded', 'Failed'].includes(vmi.status?.phase ?? '')
  if (paused(vmi)) return ['unpause', 'stop']
  if (running(vmi) && !leaving) return ['stop', 'restart', 'pause']
  if (is) return leaving ? [] : ['stop']
  return ['start']
}

/** Claims that the VM brought along, and those that it only uses. */
export function claimsOf(vm: VM): { own: string[]; others: string[] } {
  const own = templatesOf(vm).map((template) => template.metadata?.name ?? '').filter(Boolean)
  const used = (vm.spec.template.spec.volumes ?? []).map(claimName)
  return { own, others: used.filter((name) => name && !own.includes(name)) }
}

export function imageState(image: Image): State & { progress: number } {
  const find = (type: string): Condition | undefined => condition(image.status?.conditions, type)
  const [imported, limit] = [find('Imported'), find('RetryLimitExceeded')]
  const message = imported?.message || find('Initialized')?.message || ''
  const progress = image.status?.progress ?? 0
  const upload = image.spec.sourceType === 'upload'
  const state = (word: string, tone: Tone, why = ''): State & { progress: number } => ({ word, tone, why, progress })
  if (image.metadata.deletionTimestamp) return state('Terminating', 'busy')
  if (imported?.status === 'True') return state('Ready', 'good')
  if (limit?.status === 'True') return state('Failed', 'bad', message || limit.message)
  if (upload && imported?.reason === 'UploadFailed') return state('Failed', 'bad', message)
  if (imported?.status === 'Unknown' && (!upload || progress > 0)) return state('Importing', 'busy', message)
  if (imported?.status === 'False' && message) return state('Waiting', 'bad', message)
  return state('Waiting', 'busy', message || t(upload ? 'image.why.upload' : 'image.why.node'))
}

export function claimState(claim: Claim): State {
  if (claim.metadata.deletionTimestamp) return { word: 'Terminating', tone: 'busy', why: '' }
  const phase = claim.status?.phase ?? 'Pending'
  if (phase === 'Bound') return { word: 'Bound', tone: 'good', why: '' }
  if (phase === 'Lost') return { word: 'Lost', tone: 'bad', why: t('volume.why.lost') }
  const why = claim.metadata.annotations?.['volume.kubernetes.io/selected-node']
    ? t('volume.why.node')
    : t('volume.why.use')
  return { word: 'Pending', tone: 'idle', why }
}
