// How far a snapshot is. Pure.
import type { Snapshot } from '@/api/types'
import { condition } from '@/api/watch'
import type { State } from './vm'

export function snapshotState(o: Snapshot): State {
  if (o.metadata.deletionTimestamp) return { word: 'Terminating', tone: 'busy', why: '' }
  const why = o.status?.error?.message || condition(o.status?.conditions, 'Failure')?.message || ''
  if (o.status?.phase === 'Failed') return { word: 'Failed', tone: 'bad', why }
  if (o.status?.readyToUse) return { word: 'Ready', tone: 'good', why: '' }
  return { word: 'InProgress', tone: 'busy', why }
}
