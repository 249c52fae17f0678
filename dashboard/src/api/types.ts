// The objects, as far as these pages read them. What is not named here survives in what the API keeps.

export interface Meta {
  name: string
  namespace?: string
  uid: string
  resourceVersion: string
  creationTimestamp?: string
  deletionTimestamp?: string
  labels?: Record<string, string>
  annotations?: Record<string, string>
  finalizers?: string[]
  ownerReferences?: { kind: string; name: string; uid: string; controller?: boolean }[]
}

export interface Condition {
  type: string
  status: string
  reason?: string
  message?: string
  lastTransitionTime?: string
  lastUpdateTime?: string
}

export interface Obj {
  apiVersion?: string
  kind?: string
  metadata: Meta
}

export interface Volume {
  name: string
  persistentVolumeClaim?: { claimName: string; hotpluggable?: boolean }
  dataVolume?: { name: string; hotpluggable?: boolean }
  cloudInitNoCloud?: { secretRef?: { name: string }; networkDataSecretRef?: { name: string }; userData?: string; networkData?: string; userDataBase64?: string }
  containerDisk?: { image: string }
  [other: string]: unknown
}

export interface Disk {
  name: string
  bootOrder?: number
  disk?: { bus?: string; readonly?: boolean }
  cdrom?: { bus?: string; tray?: string }
  lun?: { bus?: string }
  [other: string]: unknown
}

export interface Nic {
  name: string
  model?: string
  macAddress?: string
  masquerade?: object
  bridge?: object
  state?: string
  [other: string]: unknown
}

export interface MachineSpec {
  domain: {
    cpu?: { cores?: number; sockets?: number; threads?: number; maxSockets?: number; model?: string; [other: string]: unknown }
    memory?: { guest?: string; maxGuest?: string; [other: string]: unknown }
    resources?: { limits?: Record<string, string>; requests?: Record<string, string> }
    firmware?: { bootloader?: { bios?: object; efi?: { secureBoot?: boolean; persistent?: boolean } }; [other: string]: unknown }
    features?: Record<string, { enabled?: boolean } | undefined>
    machine?: { type?: string }
    devices?: {
      disks?: Disk[]
      interfaces?: Nic[]
      tpm?: { persistent?: boolean }
      rng?: object
      watchdog?: { name?: string; i6300esb?: { action?: string } }
      sound?: { name?: string; model?: string }
      video?: { type?: string }
      autoattachGraphicsDevice?: boolean
      autoattachSerialConsole?: boolean
      [other: string]: unknown
    }
    [other: string]: unknown
  }
  networks?: { name: string; pod?: object; multus?: { networkName: string } }[]
  volumes?: Volume[]
  nodeSelector?: Record<string, string>
  affinity?: { podAntiAffinity?: object; [other: string]: unknown }
  hostname?: string
  evictionStrategy?: string
  terminationGracePeriodSeconds?: number
  [other: string]: unknown
}

export interface Matcher { name?: string; kind?: string; revisionName?: string; inferFromVolume?: string }

export interface VM extends Obj {
  spec: {
    runStrategy?: string
    running?: boolean
    instancetype?: Matcher
    preference?: Matcher
    template: { metadata?: { labels?: Record<string, string>; annotations?: Record<string, string> }; spec: MachineSpec }
  }
  status?: { printableStatus?: string; conditions?: Condition[]; ready?: boolean }
}

export interface VMI extends Obj {
  spec: MachineSpec
  status?: {
    phase?: string
    nodeName?: string
    conditions?: Condition[]
    interfaces?: { name?: string; ipAddress?: string; ipAddresses?: string[]; mac?: string; interfaceName?: string }[]
    volumeStatus?: { name: string; target?: string; phase?: string; reason?: string; message?: string; hotplugVolume?: object; size?: number }[]
    currentCPUTopology?: { cores?: number; sockets?: number; threads?: number }
    memory?: { guestCurrent?: string; guestRequested?: string }
    guestOSInfo?: { prettyName?: string; kernelRelease?: string }
    phaseTransitionTimestamps?: { phase: string; phaseTransitionTimestamp: string }[]
  }
}

export interface Image extends Obj {
  spec: { displayName: string; sourceType: string; url?: string; description?: string; checksum?: string }
  status?: { progress?: number; size?: number; virtualSize?: number; conditions?: Condition[]; storageClassName?: string }
}

export interface Node extends Obj {
  spec?: { unschedulable?: boolean; podCIDR?: string; taints?: { key: string; effect: string }[] }
  status?: {
    conditions?: Condition[]
    addresses?: { type: string; address: string }[]
    capacity?: Record<string, string>
    allocatable?: Record<string, string>
    nodeInfo?: { osImage?: string; kernelVersion?: string; kubeletVersion?: string; architecture?: string }
  }
}

export interface Claim extends Obj {
  spec: { storageClassName?: string; volumeName?: string; volumeMode?: string; accessModes?: string[]; resources?: { requests?: { storage?: string } } }
  status?: { phase?: string; capacity?: { storage?: string }; conditions?: Condition[] }
}

export interface KeyPair extends Obj {
  spec: { publicKey: string }
}

export interface Namespace extends Obj {
  status?: { phase?: string }
}

export interface Event extends Obj {
  type?: string
  reason?: string
  message?: string
  note?: string
  count?: number
  involvedObject?: { kind?: string; name?: string; namespace?: string; uid?: string }
  regarding?: { kind?: string; name?: string; namespace?: string; uid?: string }
  firstTimestamp?: string
  lastTimestamp?: string
  eventTime?: string
}

export interface Snapshot extends Obj {
  spec: { source: { kind: string; name: string } }
  status?: { phase?: string; readyToUse?: boolean; creationTime?: string; conditions?: Condition[]; error?: { message?: string }; snapshotVolumes?: { includedVolumes?: string[]; excludedVolumes?: string[] }; indications?: string[] }
}

export interface Restore extends Obj {
  spec: { target: { kind: string; name: string }; virtualMachineSnapshotName: string }
  status?: { complete?: boolean; conditions?: Condition[]; restoreTime?: string }
}

export interface Clone extends Obj {
  spec: { source: { kind: string; name: string }; target?: { name: string } }
  status?: { phase?: string; conditions?: Condition[]; targetName?: string }
}

export interface StorageClass extends Obj {
  provisioner?: string
}

export interface Subject { kind: string; name: string; namespace?: string; apiGroup?: string }
export interface Binding extends Obj { roleRef: { kind: string; name: string; apiGroup: string }; subjects?: Subject[] }
export interface Secret extends Obj { type?: string; data?: Record<string, string> }
