// A machine's conditions as sentences, what is wrong first.
import type { Condition } from '@/api/types'
import { t, type Key } from '@/i18n'

/** What is said when a condition holds, and when it does not. Nothing is said of one without a text. */
const PLAIN: Record<string, [Key, Key | undefined]> = {
  Ready: ['cond.ready', 'cond.notReady'],
  PodScheduled: ['cond.scheduled', 'cond.notScheduled'],
  LiveMigratable: ['cond.migratable', 'cond.notMigratable'],
  StorageLiveMigratable: ['cond.storageMigratable', 'cond.notStorageMigratable'],
  AgentConnected: ['cond.agent', 'cond.noAgent'],
  Initialized: ['cond.initialized', 'cond.notInitialized'],
  Synchronized: ['cond.synchronized', 'cond.notSynchronized'],
  DataVolumesReady: ['cond.disks', 'cond.noDisks'],
  Paused: ['cond.paused', undefined],
  RestartRequired: ['cond.restart', undefined],
  Failure: ['cond.failure', undefined],
}
/** What is worth knowing and nothing to repair. */
const ASIDE = ['LiveMigratable', 'StorageLiveMigratable', 'AgentConnected']
const BAD_WHEN_TRUE = ['Paused', 'RestartRequired', 'Failure']

export interface Said extends Condition { text: string; good: boolean; /** 0 wrong, 1 good, 2 aside. */ rank: number }

export function saidOf(conditions: Condition[]): Said[] {
  const all = new Map(conditions.map((c) => [c.type, c]))
  const out: Said[] = []
  for (const c of all.values()) {
    const holds = c.status === 'True'
    const plain = PLAIN[c.type]
    const key = plain?.[holds ? 0 : 1]
    if (plain && !key) continue
    const good = BAD_WHEN_TRUE.includes(c.type) ? !holds : holds
    out.push({ ...c, text: key ? t(key) : `${c.type}: ${c.status}`, good, rank: good ? 1 : ASIDE.includes(c.type) ? 2 : 0 })
  }
  return out.sort((a, b) => a.rank - b.rank)
}
