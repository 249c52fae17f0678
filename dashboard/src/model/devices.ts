// The smaller devices of a machine, as the form shows them and as the API has them. What the form does not know stays. Pure.
import type { MachineSpec } from '@/api/types'

export const WATCHDOGS = ['none', 'reset', 'poweroff', 'shutdown'] as const
export const SOUNDS = ['none', 'ich9', 'ac97'] as const
export const GRAPHICS = ['auto', 'none', 'vga', 'virtio', 'bochs', 'cirrus', 'ramfb'] as const
export const TPMS = ['none', 'volatile', 'persistent'] as const

export interface DevicesWanted {
  tpm: (typeof TPMS)[number]
  /** Random numbers of the host for the guest. */
  rng: boolean
  /** What happens when the guest hangs. */
  watchdog: string
  sound: string
  graphics: string
}
export const NO_DEVICES: DevicesWanted = { tpm: 'none', rng: false, watchdog: 'none', sound: 'none', graphics: 'auto' }

type Devices = NonNullable<MachineSpec['domain']['devices']>

function readFrom(devices: Devices): DevicesWanted {
  const { tpm, rng, watchdog, sound, video } = devices
  return {
    tpm: tpm ? (tpm.persistent ? 'persistent' : 'volatile') : 'none',
    rng: !!rng,
    watchdog: watchdog ? (watchdog.i6300esb?.action ?? 'reset') : 'none',
    sound: sound ? (sound.model ?? 'ich9') : 'none',
    graphics: devices.autoattachGraphicsDevice === false ? 'none' : (video?.type ?? 'auto'),
  }
}
export const readDevices = (spec: MachineSpec): DevicesWanted => readFrom(spec.domain.devices ?? {})

/** Writes what is wanted and not so yet. */
export function writeDevices(wanted: DevicesWanted, spec: MachineSpec): void {
  const devices = (spec.domain.devices ??= {})
  const now = readFrom(devices)
  const set = <K extends keyof Devices>(name: K, value: Devices[K] | undefined): void => {
    if (value === undefined) delete devices[name]
    else devices[name] = value
  }
  if (now.tpm !== wanted.tpm) set('tpm', wanted.tpm === 'none' ? undefined : wanted.tpm === 'persistent' ? { persistent: true } : {})
  if (now.rng !== wanted.rng) set('rng', wanted.rng ? {} : undefined)
  if (now.watchdog !== wanted.watchdog) set('watchdog', wanted.watchdog === 'none' ? undefined : { name: devices.watchdog?.name ?? 'watchdog', i6300esb: { action: wanted.watchdog } })
  if (now.sound !== wanted.sound) set('sound', wanted.sound === 'none' ? undefined : { name: devices.sound?.name ?? 'sound', model: wanted.sound })
  if (now.graphics !== wanted.graphics) {
    set('autoattachGraphicsDevice', wanted.graphics === 'none' ? false : undefined)
    set('video', ['auto', 'none'].includes(wanted.graphics) ? undefined : { type: wanted.graphics })
  }
}
