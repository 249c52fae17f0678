// Rows of the list of machines. A row is made once for a VM and its instance as they are, and kept until one of them changes.

import type { VM, VMI } from '@/api/types'
import { stateWord } from '@/i18n'
import { templatesOf } from './claims'
import { address, cores, memory, vmState, type State } from './vm'

export interface Row {
  metadata: VM['metadata']
  vm: VM
  vmi?: VMI
  state: State
  address: string
  node: string
  cores: number
  memory: number
  image: string
  labels: string[]
  created: number
  /** What a filter looks at. */
  text: string
}

const OWN = /(^|\.)(harvesterhci\.io|kubevirt\.io|kubernetes\.io)\//
const rows = new WeakMap<VM, Row>()

export function rowOf(vm: VM, vmi: VMI | undefined): Row {
  const there = rows.get(vm)
  if (there && there.vmi === vmi) return there
  const state = vmState(vm, vmi)
  const node = vmi?.status?.nodeName ?? ''
  const ip = address(vmi)
  const spec = vm.spec.instancetype && vmi ? vmi.spec : vm.spec.template.spec
  const labels = Object.entries(vm.metadata.labels ?? {}).filter(([k]) => !OWN.test(k)).map(([k, v]) => `${k}=${v}`)
  const image = templatesOf(vm).map((t) => t.metadata?.annotations?.['harvesterhci.io/imageId']).find(Boolean) ?? ''
  const row: Row = {
    metadata: vm.metadata, vm, vmi, state, node, labels, image, address: ip, cores: vm.spec.instancetype && !vmi ? 0 : cores(spec), memory: memory(spec),
    created: Date.parse(vm.metadata.creationTimestamp ?? ''),
    text: `${vm.metadata.namespace}/${vm.metadata.name} ${state.word} ${stateWord(state.word)} ${node} ${ip} ${image} ${labels.join(' ')}`.toLowerCase(),
  }
  rows.set(vm, row)
  return row
}

/** The names of labels that machines carry, the most used first. */
export function labelsOf(all: Row[], most = 30): string[] {
  const count = new Map<string, number>()
  for (const row of all) for (const label of row.labels) {
    const name = label.slice(0, label.indexOf('='))
    count.set(name, (count.get(name) ?? 0) + 1)
  }
  return [...count].sort(([a, n], [b, m]) => m - n || a.localeCompare(b)).slice(0, most).map(([name]) => name)
}

/** What machines are grouped by: `@node`, `@state`, `@namespace`, or a label's name. */
export function groupers(by: string): ((row: Row) => string) | undefined {
  if (by === '@node') return (r) => r.node
  if (by === '@state') return (r) => r.state.word
  if (by === '@namespace') return (r) => r.metadata.namespace ?? ''
  return by ? (r) => r.vm.metadata.labels?.[by] ?? '' : undefined
}
