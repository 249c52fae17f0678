// The claims that a machine has: what it brought along, by Harvester's annotation. Pure.
import type { VM, Volume } from '@/api/types'

export const TEMPLATES = 'harvesterhci.io/volumeClaimTemplates'

export interface Template { metadata?: { name?: string; annotations?: Record<string, string> }; spec?: { storageClassName?: string; resources?: { requests?: { storage?: string } } } }

export function templatesOf(vm: VM): Template[] {
  try {
    const found: unknown = JSON.parse(vm.metadata.annotations?.[TEMPLATES] ?? '[]')
    return Array.isArray(found) ? (found as Template[]) : []
  } catch {
    // Somebody's annotation that is no list brings nothing along.
    return []
  }
}

/** The claim that a volume is, by name. */
export const claimName = (v: Volume): string => v.persistentVolumeClaim?.claimName ?? v.dataVolume?.name ?? ''
