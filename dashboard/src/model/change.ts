// Changes of a VM that reach it while it runs. Each gives a new VM; what they do not touch stays. Pure.

import type { MachineSpec, VM } from '@/api/types'
import { gibibytes } from './format'

function changed(vm: VM, change: (spec: MachineSpec) => void): VM {
  const out = JSON.parse(JSON.stringify(vm)) as VM
  change(out.spec.template.spec)
  return out
}

/** Another medium in a drive, or none. */
export const withMedium = (vm: VM, disk: string, claim: string): VM =>
  changed(vm, (spec) => {
    const medium = { name: disk, persistentVolumeClaim: { claimName: claim, hotpluggable: true } }
    const volumes = spec.volumes ?? []
    const there = volumes.some((v) => v.name === disk)
    if (!claim) spec.volumes = volumes.filter((v) => v.name !== disk)
    else spec.volumes = there ? volumes.map((v) => (v.name === disk ? medium : v)) : [...volumes, medium]
  })

/** One more network card. An empty network is the management network. */
export const withNic = (vm: VM, nic: { name: string; network: string; model: string; mac: string }): VM =>
  changed(vm, (spec) => {
    const devices = (spec.domain.devices ??= {})
    const way = nic.network ? { bridge: {} } : { masquerade: {} }
    devices.interfaces = [...(devices.interfaces ?? []), { name: nic.name, model: nic.model, ...(nic.mac ? { macAddress: nic.mac } : {}), ...way }]
    spec.networks = [...(spec.networks ?? []), nic.network ? { name: nic.name, multus: { networkName: nic.network } } : { name: nic.name, pod: {} }]
  })

/** A card on another network. */
export const moved = (vm: VM, name: string, network: string): VM =>
  changed(vm, (spec) => {
    spec.networks = spec.networks?.map((n) => (n.name === name ? { name, multus: { networkName: network } } : n))
  })

/** A card that goes: taken out of a machine that runs, or left out at its next start. */
export const withoutNic = (vm: VM, name: string, running: boolean): VM =>
  changed(vm, (spec) => {
    const devices = (spec.domain.devices ??= {})
    if (running) {
      devices.interfaces = devices.interfaces?.map((i) => (i.name === name ? { ...i, state: 'absent' } : i))
      return
    }
    devices.interfaces = devices.interfaces?.filter((i) => i.name !== name)
    spec.networks = spec.networks?.filter((n) => n.name !== name)
  })

/** Whether processors can be added to a machine while it runs: by sockets, up to what it began with. */
export const cpuGrows = (vm: VM): boolean => !!vm.spec.template.spec.domain.cpu?.maxSockets

export const resized = (vm: VM, cpus: number, memoryGi: number): VM =>
  changed(vm, (spec) => {
    const cpu = (spec.domain.cpu ??= {})
    const per = (cpu.cores ?? 1) * (cpu.threads ?? 1)
    if (cpu.maxSockets && cpus % per === 0) cpu.sockets = cpus / per
    else if ((cpu.sockets ?? 1) * per !== cpus) Object.assign(cpu, { cores: cpus, sockets: 1, threads: 1 })
    spec.domain.memory = { ...spec.domain.memory, guest: gibibytes(memoryGi) }
  })
