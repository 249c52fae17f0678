// Machines of a group that keep apart: a label of theirs, and a rule against it that the scheduler reads. Other rules stay. Pure.
import type { MachineSpec, VM } from '@/api/types'

/** Label of the instances of a group. */
const GROUP = 'apart.sheaf.io/group'
export const HOST = 'kubernetes.io/hostname'

export interface ApartWanted {
  /** Empty for none. */
  group: string
  /** Not started at all where it cannot be kept, or only if it can. */
  apart: 'must' | 'prefer'
  /** Nodes with the same value of this label are the same place. */
  apartBy: string
}
export const TOGETHER: ApartWanted = { group: '', apart: 'prefer', apartBy: HOST }

interface Term { topologyKey?: string; labelSelector?: { matchLabels?: Record<string, string> } }
interface Rules { requiredDuringSchedulingIgnoredDuringExecution?: Term[]; preferredDuringSchedulingIgnoredDuringExecution?: { weight: number; podAffinityTerm: Term }[] }

const ours = (term: Term): boolean => GROUP in (term.labelSelector?.matchLabels ?? {})
const rulesOf = (spec: MachineSpec): Rules => (spec.affinity?.podAntiAffinity ?? {}) as Rules

export function readApart(spec: MachineSpec): ApartWanted {
  const rules = rulesOf(spec)
  const hard = rules.requiredDuringSchedulingIgnoredDuringExecution?.find(ours)
  const term = hard ?? rules.preferredDuringSchedulingIgnoredDuringExecution?.find((p) => ours(p.podAffinityTerm))?.podAffinityTerm
  return term ? { group: term.labelSelector?.matchLabels?.[GROUP] ?? '', apart: hard ? 'must' : 'prefer', apartBy: term.topologyKey ?? HOST } : { ...TOGETHER }
}

export function writeApart(wanted: ApartWanted, vm: VM): void {
  const spec = vm.spec.template.spec
  const now = readApart(spec)
  if (now.group === wanted.group && (!now.group || (now.apart === wanted.apart && now.apartBy === wanted.apartBy))) return
  const rules = rulesOf(spec)
  const hard = (rules.requiredDuringSchedulingIgnoredDuringExecution ?? []).filter((term) => !ours(term))
  const soft = (rules.preferredDuringSchedulingIgnoredDuringExecution ?? []).filter((p) => !ours(p.podAffinityTerm))
  const metadata = (vm.spec.template.metadata ??= {})
  const { [GROUP]: _old, ...labels } = metadata.labels ?? {}
  if (wanted.group) {
    metadata.labels = { ...labels, [GROUP]: wanted.group }
    const term = { topologyKey: wanted.apartBy, labelSelector: { matchLabels: { [GROUP]: wanted.group } } }
    if (wanted.apart === 'must') hard.push(term)
    else soft.push({ weight: 100, podAffinityTerm: term })
  } else if (metadata.labels) metadata.labels = labels
  const next: Rules = { ...(hard.length ? { requiredDuringSchedulingIgnoredDuringExecution: hard } : {}), ...(soft.length ? { preferredDuringSchedulingIgnoredDuringExecution: soft } : {}) }
  const { podAntiAffinity: _rules, ...rest } = spec.affinity ?? {}
  const affinity = Object.keys(next).length ? { ...rest, podAntiAffinity: next } : rest
  if (Object.keys(affinity).length) spec.affinity = affinity
  else delete spec.affinity
}
