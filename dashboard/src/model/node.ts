// What a node says of itself, in words. Pure.
import type { Condition, Node, VMI } from '@/api/types'
import { condition } from '@/api/watch'
import { t, type Key } from '@/i18n'
import { cores, memory, type State } from './vm'

const ROLE = 'node-role.kubernetes.io/'
export const roles = (n: Node): string => Object.keys(n.metadata.labels ?? {}).filter((l) => l.startsWith(ROLE)).map((l) => l.slice(ROLE.length)).join(', ')
export const nodeAddress = (n: Node): string => n.status?.addresses?.find((a) => a.type === 'InternalIP')?.address ?? ''

export function nodeState(n: Node): State {
  const ready = condition(n.status?.conditions, 'Ready')
  if (ready?.status !== 'True') return { tone: 'bad', word: 'NotReady', why: ready?.message ?? '' }
  return n.spec?.unschedulable ? { tone: 'paused', word: 'Cordoned', why: t('node.cordoned') } : { tone: 'good', word: 'Ready', why: '' }
}

export interface Given { n: number; cpu: number; memory: number }
export const NOTHING: Given = { n: 0, cpu: 0, memory: 0 }

/** Machines, processors and memory that each node has given away. */
export function givenBy(instances: VMI[]): Map<string, Given> {
  const out = new Map<string, Given>()
  for (const i of instances) {
    const node = i.status?.nodeName
    if (!node || ['Succeeded', 'Failed'].includes(i.status?.phase ?? '')) continue
    const sum = out.get(node) ?? NOTHING
    out.set(node, { n: sum.n + 1, cpu: sum.cpu + cores(i.spec), memory: sum.memory + (memory(i.spec) || 0) })
  }
  return out
}

/** What is said of a condition where all is well, and where it is not. */
const SAID: Record<string, [Key, Key]> = {
  Ready: ['node.isReady', 'node.isNotReady'],
  MemoryPressure: ['node.memoryGood', 'node.memoryBad'],
  DiskPressure: ['node.diskGood', 'node.diskBad'],
  PIDPressure: ['node.pidGood', 'node.pidBad'],
}

/** A node's conditions, what is wrong first. Pressure is wrong where there is some. */
export function nodeConditions(n: Node): (Condition & { text: string; good: boolean })[] {
  const all = (n.status?.conditions ?? []).map((c) => {
    const good = (c.status === 'True') === (c.type === 'Ready')
    const said = SAID[c.type]?.[good ? 0 : 1]
    return { ...c, text: said ? t(said) : `${c.type}: ${c.status}`, good }
  })
  const rank = (c: { good: boolean; type: string }): number => Number(c.good) * 2 + Number(c.type !== 'Ready')
  return all.sort((a, b) => rank(a) - rank(b))
}
