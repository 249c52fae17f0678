// The simple kinds: each is an entry. What has a page of its own (machines, images, volumes, users) is not here.

import { Camera, Cpu, Database, Gauge, Key as KeyIcon, KeyRound, Layers, Network, Route, ScrollText, Settings as SettingsIcon, Shield, ShieldCheck, SlidersHorizontal } from 'lucide-vue-next'
import * as kinds from '@/api/kinds'
import type { Binding, Snapshot } from '@/api/types'
import { condition } from '@/api/watch'
import { t } from '@/i18n'
import { bytes, gibibytes, moment, quantity } from '@/model/format'
import { keyComplaint } from '@/model/compose'
import { snapshotState } from '@/model/snapshot'
import type { State } from '@/model/vm'
import { parse, stringify } from 'yaml'
import type { Any, Entry, Values } from './types'

const good = (word: string): State => ({ word, tone: 'good', why: '' })
const text = (v: unknown): string => String(v ?? '')

interface NetConf { type?: string; bridge?: string; vlan?: number; mtu?: number }
function conf(o: Any): NetConf {
  try {
    return (JSON.parse(o.spec?.config ?? '{}') as NetConf) ?? {}
  } catch {
    // Somebody's definition whose text is no JSON has nothing to show.
    return {}
  }
}

const networks: Entry = {
  id: 'networks', kind: kinds.NETWORKS, icon: Network, title: 'nav.networks', empty: 'network.empty', emptyText: 'network.emptyText', deleteText: 'network.deleteText',
  cells: [
    { id: 'type', label: 'network.type', text: (o) => text(conf(o).type) },
    { id: 'bridge', label: 'network.bridge', text: (o) => text(conf(o).bridge), mono: true },
    { id: 'vlan', label: 'network.vlan', text: (o) => (conf(o).vlan ? String(conf(o).vlan) : t('network.untagged')), sort: (o) => conf(o).vlan ?? 0 },
  ],
  form: {
    create: 'network.create', edit: 'network.edit',
    fields: [
      { id: 'bridge', label: 'network.bridge', hint: 'network.bridgeHint', kind: 'text', placeholder: 'mgmt-br', api: ['spec.config'], check: (v) => (/^[\w.-]{1,15}$/.test(text(v)) ? undefined : 'network.bad.bridge') },
      { id: 'vlan', label: 'network.vlan', hint: 'network.vlanHint', kind: 'number', initial: 0, min: 0, half: true, check: (v) => (Number.isInteger(v) && Number(v) >= 0 && Number(v) <= 4094 ? undefined : 'network.bad.vlan') },
      { id: 'mtu', label: 'network.mtu', hint: 'network.mtuHint', kind: 'number', initial: 0, min: 0, half: true, check: (v) => (Number(v) === 0 || (Number(v) >= 576 && Number(v) <= 9000) ? undefined : 'network.bad.mtu') },
    ],
    compose: (v, name, before) => ({
      spec: { config: JSON.stringify({ cniVersion: '0.3.1', name, promiscMode: true, ipam: {}, ...(before ? conf(before) : {}), type: 'bridge', bridge: v.bridge, vlan: v.vlan ? Number(v.vlan) : undefined, mtu: v.mtu ? Number(v.mtu) : undefined }) },
    }),
    read: (o) => ({ bridge: text(conf(o).bridge), vlan: conf(o).vlan ?? 0, mtu: conf(o).mtu ?? 0 }),
  },
}

const keys: Entry = {
  id: 'keys', kind: kinds.KEYPAIRS, icon: KeyRound, title: 'nav.keys', empty: 'key.empty', emptyText: 'key.emptyText', deleteText: 'key.deleteText',
  state: (o) => {
    const validated = condition(o.status?.conditions, 'validated')
    return validated?.status === 'False' ? { word: 'Invalid', tone: 'bad', why: validated.message ?? '' } : good('Ready')
  },
  cells: [
    { id: 'fingerprint', label: 'key.fingerprint', text: (o) => text(o.status?.fingerPrint), mono: true, wide: true },
    { id: 'type', label: 'network.type', text: (o) => text(o.spec?.publicKey).split(/\s+/)[0] ?? '', mono: true },
  ],
  form: {
    create: 'key.create',
    fields: [{ id: 'publicKey', label: 'key.public', hint: 'create.keyHint', kind: 'area', placeholder: 'ssh-ed25519 AAAA…', api: ['spec.publicKey'], check: (v) => keyComplaint(text(v)) }],
    compose: (v) => ({ spec: { publicKey: text(v.publicKey).trim() } }),
  },
}

const namespaces: Entry = {
  id: 'namespaces', kind: kinds.NAMESPACES, icon: Layers, title: 'nav.namespaces', empty: 'namespace.empty', deleteText: 'namespace.deleteText',
  state: (o) => {
    if (!o.metadata.deletionTimestamp) return good('Active')
    const left = (o.status?.conditions ?? []).find((c: { status: string; message?: string }) => c.status === 'True' && c.message)
    return { word: 'Terminating', tone: 'busy', why: left?.message ?? '' }
  },
  cells: [{ id: 'text', label: 'app.description', text: (o) => text(o.metadata.annotations?.['field.cattle.io/description']), wide: true }],
  form: {
    create: 'namespace.create', edit: 'namespace.edit',
    fields: [{ id: 'text', label: 'app.description', kind: 'text' }],
    compose: (v) => ({ metadata: { annotations: v.text ? { 'field.cattle.io/description': v.text } : {} } }),
    read: (o) => ({ text: text(o.metadata.annotations?.['field.cattle.io/description']) }),
  },
}

/** What a quota limits, and the name of that in the API. */
const HARD = [
  ['cpu', 'limits.cpu', 'quota.cpu'], ['memory', 'limits.memory', 'quota.memory'], ['storage', 'requests.storage', 'quota.storage'],
  ['machines', 'count/virtualmachines.kubevirt.io', 'quota.machines'], ['claims', 'persistentvolumeclaims', 'quota.claims'],
] as const
const inGi = (id: string): boolean => id === 'memory' || id === 'storage'
const used = (o: Any): string =>
  HARD.filter(([, name]) => o.spec?.hard?.[name] !== undefined).map(([id, name, label]) => {
    const show = (v: unknown): string => (inGi(id) ? bytes(quantity(text(v))) : text(v))
    return `${t(label)}: ${show(o.status?.used?.[name] ?? 0)} / ${show(o.spec.hard[name])}`
  }).join(' · ')

const quotas: Entry = {
  id: 'quotas', kind: kinds.QUOTAS, icon: Gauge, title: 'nav.quotas', empty: 'quota.empty', emptyText: 'quota.emptyText', deleteText: 'quota.deleteText',
  cells: [{ id: 'used', label: 'quota.used', text: used }],
  form: {
    create: 'quota.create', edit: 'quota.edit',
    fields: HARD.map(([id, name, label]) => ({ id, label, hint: 'quota.hint' as const, kind: 'number' as const, initial: 0, min: 0, half: true, api: [`spec.hard.${name}`, `spec.hard[${name}]`], check: (v) => (Number(v) >= 0 ? undefined : 'create.bad.positive') })),
    compose: (v, _, before) => {
      const hard = { ...before?.spec?.hard }
      for (const [id, name] of HARD) {
        if (Number(v[id]) > 0) hard[name] = inGi(id) ? gibibytes(Number(v[id])) : String(v[id])
        else delete hard[name]
      }
      return { spec: { ...before?.spec, hard } }
    },
    read: (o) => Object.fromEntries(HARD.map(([id, name]) => [id, (quantity(o.spec?.hard?.[name]) || 0) / (inGi(id) ? 2 ** 30 : 1)])),
  },
}

const size = (id: string, kind: kinds.Kind, title: Entry['title']): Entry => ({
  id, kind, icon: Cpu, title, empty: 'type.empty', emptyText: 'type.emptyText', deleteText: 'type.deleteText',
  cells: [
    { id: 'cpu', label: 'vm.cpu', text: (o) => text(o.spec?.cpu?.guest), sort: (o) => Number(o.spec?.cpu?.guest), end: true },
    { id: 'memory', label: 'vm.memory', text: (o) => bytes(quantity(o.spec?.memory?.guest)), sort: (o) => quantity(o.spec?.memory?.guest), end: true },
  ],
  form: {
    create: 'type.create', edit: 'type.edit',
    fields: [
      { id: 'cpu', label: 'vm.cpu', kind: 'number', initial: 2, min: 1, half: true, api: ['spec.cpu'], check: (v) => (Number.isInteger(v) && Number(v) >= 1 ? undefined : 'create.bad.positive') },
      { id: 'memory', label: 'create.memory', kind: 'number', initial: 4, min: 0.0625, half: true, api: ['spec.memory'], check: (v) => (Number(v) >= 0.0625 ? undefined : 'create.bad.positive') },
    ],
    compose: (v, _, before) => ({ spec: { ...before?.spec, cpu: { ...before?.spec?.cpu, guest: Number(v.cpu) }, memory: { ...before?.spec?.memory, guest: gibibytes(Number(v.memory)) } } }),
    read: (o) => ({ cpu: Number(o.spec?.cpu?.guest ?? 1), memory: quantity(o.spec?.memory?.guest) / 2 ** 30 }),
  },
})

const preference = (id: string, kind: kinds.Kind, title: Entry['title']): Entry => ({
  id, kind, icon: SlidersHorizontal, title, empty: 'preference.empty', emptyText: 'preference.emptyText', deleteText: 'preference.deleteText',
  cells: [{ id: 'what', label: 'preference.what', text: (o) => Object.keys(o.spec ?? {}).join(', ') }],
  form: {
    create: 'preference.create', edit: 'preference.edit',
    fields: [{ id: 'spec', label: 'preference.spec', hint: 'preference.hint', kind: 'yaml', initial: 'devices:\n  preferredDiskBus: virtio\n  preferredInterfaceModel: virtio\n', api: ['spec'], check: (v) => mapping(text(v)) }],
    compose: (v) => ({ spec: parse(text(v.spec)) as object }),
    read: (o) => ({ spec: stringify(o.spec ?? {}) }),
  },
})

function mapping(given: string): 'app.bad.yaml' | undefined {
  try {
    const value: unknown = parse(given)
    return value && typeof value === 'object' && !Array.isArray(value) ? undefined : 'app.bad.yaml'
  } catch {
    return 'app.bad.yaml'
  }
}
function list(given: string): 'app.bad.list' | undefined {
  try {
    return Array.isArray(parse(given)) ? undefined : 'app.bad.list'
  } catch {
    return 'app.bad.list'
  }
}

const snapshots: Entry = {
  id: 'snapshots', kind: kinds.SNAPSHOTS, icon: Camera, title: 'nav.snapshots', empty: 'snapshot.empty', emptyText: 'snapshot.emptyText', deleteText: 'snapshot.deleteText', state: (o) => snapshotState(o as unknown as Snapshot),
  cells: [
    { id: 'source', label: 'snapshot.source', text: (o) => text(o.spec?.source?.name) },
    { id: 'volumes', label: 'snapshot.volumes', text: (o) => (o.status?.snapshotVolumes?.includedVolumes ?? []).join(', '), wide: true },
    { id: 'taken', label: 'snapshot.taken', text: (o) => moment(o.status?.creationTime), sort: (o) => text(o.status?.creationTime), wide: true },
  ],
}

const classes: Entry = {
  id: 'classes', kind: kinds.CLASSES, icon: Database, title: 'nav.classes', empty: 'class.empty', deleteText: 'class.deleteText',
  cells: [
    { id: 'provisioner', label: 'class.provisioner', text: (o) => text(o.provisioner), mono: true },
    { id: 'reclaim', label: 'class.reclaim', text: (o) => text(o.reclaimPolicy) },
    { id: 'binding', label: 'class.binding', text: (o) => text(o.volumeBindingMode), wide: true },
    { id: 'default', label: 'class.default', text: (o) => (o.metadata.annotations?.['storageclass.kubernetes.io/is-default-class'] === 'true' ? t('app.yes') : '') },
  ],
}

const role = (id: string, kind: kinds.Kind, title: Entry['title']): Entry => ({
  id, kind, icon: Shield, title, empty: 'role.empty', emptyText: 'role.emptyText', deleteText: 'role.deleteText',
  cells: [{ id: 'rules', label: 'role.rules', text: (o) => (o.rules ?? []).map((r: Values & { resources?: string[]; verbs?: string[] }) => `${(r.resources ?? []).join(', ')}: ${(r.verbs ?? []).join(', ')}`).join(' · ') }],
  form: {
    create: 'role.create', edit: 'role.edit', nameCheck: (n) => /^[^/%]{1,253}$/.test(n),
    fields: [{ id: 'rules', label: 'role.rules', hint: 'role.hint', kind: 'yaml', initial: '- apiGroups: [kubevirt.io]\n  resources: [virtualmachines]\n  verbs: [get, list, watch]\n', api: ['rules'], check: (v) => list(text(v)) }],
    compose: (v) => ({ rules: parse(text(v.rules)) as object[] }),
    read: (o) => ({ rules: stringify(o.rules ?? []) }),
  },
})

const subjects = (o: Any): string => ((o as unknown as Binding).subjects ?? []).map((s) => `${s.kind} ${s.namespace ? `${s.namespace}/` : ''}${s.name}`).join(', ')
const binding = (id: string, kind: kinds.Kind, title: Entry['title'], wide: boolean): Entry => ({
  id, kind, icon: ShieldCheck, title, empty: 'binding.empty', emptyText: 'binding.emptyText', deleteText: 'binding.deleteText',
  cells: [
    { id: 'role', label: 'binding.role', text: (o) => `${o.roleRef?.kind === 'Role' ? 'Role ' : ''}${o.roleRef?.name}` },
    { id: 'subjects', label: 'binding.subjects', text: subjects },
  ],
  form: {
    create: 'binding.create', nameCheck: (n) => /^[^/%]{1,253}$/.test(n),
    fields: [
      { id: 'what', label: 'binding.kind', kind: 'select', initial: 'User', half: true, choices: () => ['User', 'Group', 'ServiceAccount'].map((v) => ({ value: v, label: v })) },
      { id: 'who', label: 'binding.who', hint: 'binding.whoHint', kind: 'text', half: true, api: ['subjects'], check: (v, all) => (all.what === 'ServiceAccount' ? (/^[^/]+\/[^/]+$/.test(text(v)) ? undefined : 'binding.bad.account') : text(v).trim() ? undefined : 'app.bad.empty') },
      { id: 'role', label: 'binding.role', hint: wide ? 'binding.roleHintWide' : 'binding.roleHint', kind: 'text', initial: wide ? 'cluster-admin' : 'edit', api: ['roleRef'], check: (v) => (text(v).trim() ? undefined : 'app.bad.empty') },
      ...(wide ? [] : [{ id: 'own', label: 'binding.own' as const, kind: 'check' as const, initial: false }]),
    ],
    compose: (v) => {
      const [namespace, account] = text(v.who).split('/')
      const subject = v.what === 'ServiceAccount' ? { kind: v.what, namespace, name: account } : { apiGroup: 'rbac.authorization.k8s.io', kind: v.what, name: text(v.who).trim() }
      return { roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: v.own ? 'Role' : 'ClusterRole', name: text(v.role).trim() }, subjects: [subject] }
    },
  },
})

const accounts: Entry = {
  id: 'accounts', kind: kinds.ACCOUNTS, icon: KeyIcon, title: 'nav.accounts', empty: 'account.empty', emptyText: 'account.emptyText', deleteText: 'account.deleteText',
  cells: [],
  form: { create: 'account.create', fields: [], compose: () => ({}) },
}

const settings: Entry = {
  id: 'settings', kind: kinds.SETTINGS, icon: SettingsIcon, title: 'nav.settings', empty: 'setting.empty', emptyText: 'setting.emptyText', deleteText: 'setting.deleteText',
  state: (o) => {
    const c = condition(o.status?.conditions, 'configured')
    return c?.status === 'False' ? { word: 'Refused', tone: 'bad', why: c.message ?? '' } : { word: o.value ? t('setting.changed') : t('setting.default'), tone: o.value ? 'busy' : 'idle', why: '' }
  },
  cells: [{ id: 'value', label: 'setting.value', text: (o) => text(o.value || o.default), mono: true }],
  form: {
    create: 'setting.edit', edit: 'setting.edit', fixed: true,
    fields: [{ id: 'value', label: 'setting.value', hint: 'setting.hint', kind: 'area', api: ['value', 'spec.value'] }],
    compose: (v) => ({ value: v.value }),
    read: (o) => ({ value: text(o.value) }),
  },
}

const migrations: Entry = {
  id: 'migrations', kind: kinds.MIGRATIONS, icon: Route, title: 'nav.migrations', empty: 'migration.empty', deleteText: 'migration.deleteText',
  state: (o) => {
    const phase = text(o.status?.phase) || 'Pending'
    return { word: phase, tone: phase === 'Succeeded' ? 'good' : phase === 'Failed' ? 'bad' : 'busy', why: text(o.status?.migrationState?.failureReason) }
  },
  cells: [{ id: 'vm', label: 'snapshot.source', text: (o) => text(o.spec?.vmiName) }, { id: 'way', label: 'vm.node', text: (o) => [o.status?.migrationState?.sourceNode, o.status?.migrationState?.targetNode].filter(Boolean).join(' → ') }],
}

const limits: Entry = {
  id: 'limits', kind: kinds.LIMITS, icon: ScrollText, title: 'nav.limits', empty: 'limit.empty', emptyText: 'limit.emptyText', deleteText: 'quota.deleteText',
  cells: [{ id: 'what', label: 'preference.what', text: (o) => (o.spec?.limits ?? []).map((l: { type?: string }) => l.type).join(', ') }],
  form: {
    create: 'limit.create', edit: 'limit.edit',
    fields: [{ id: 'limits', label: 'limit.limits', kind: 'yaml', initial: '- type: Container\n  default: {cpu: "1", memory: 1Gi}\n', api: ['spec.limits'], check: (v) => list(text(v)) }],
    compose: (v) => ({ spec: { limits: parse(text(v.limits)) as object[] } }),
    read: (o) => ({ limits: stringify(o.spec?.limits ?? []) }),
  },
}

export const catalog: Record<string, Entry> = Object.fromEntries(
  [
    networks, keys, namespaces, quotas, limits, snapshots, classes, accounts, settings, migrations,
    size('clustertypes', kinds.CLUSTER_TYPES, 'nav.clusterTypes'), size('types', kinds.TYPES, 'nav.ownTypes'),
    preference('clusterpreferences', kinds.CLUSTER_PREFERENCES, 'nav.clusterPreferences'), preference('preferences', kinds.PREFERENCES, 'nav.ownPreferences'),
    role('clusterroles', kinds.CLUSTER_ROLES, 'nav.clusterRoles'), role('roles', kinds.ROLES, 'nav.roles'),
    binding('clusterbindings', kinds.CLUSTER_BINDINGS, 'nav.clusterBindings', true), binding('bindings', kinds.BINDINGS, 'nav.bindings', false),
  ].map((entry) => [entry.id, entry]),
)
