// What is done to a node: no more machines are placed there, or again.
import { Ban, CircleCheck } from 'lucide-vue-next'
import { can } from '@/api/access'
import * as kinds from '@/api/kinds'
import type { Node } from '@/api/types'
import { t } from '@/i18n'
import type { Item } from './Menu.vue'
import { notify, why } from './toast'

async function cordon(n: Node, unschedulable: boolean): Promise<void> {
  try {
    await kinds.merge(kinds.NODES, '', n.metadata.name, { spec: { unschedulable: unschedulable || null } })
  } catch (error) {
    notify(t('app.failed', { why: why(error) }), true)
  }
}

export function nodeActions(n: Node): Item[] {
  if (!can('patch', kinds.NODES)) return []
  const off = n.spec?.unschedulable
  return [{ label: t(off ? 'node.uncordon' : 'node.cordon'), icon: off ? CircleCheck : Ban, run: () => void cordon(n, !off) }]
}
