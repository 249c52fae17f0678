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
  persistentVolumeClaim?: { claimName: string }
  dataVolume?: { name: string }
  cloudInitNoCloud?: unknown
  containerDisk?: { image: string }
}

export interface MachineSpec {
  domain: {
    cpu?: { cores?: number; sockets?: number; threads?: number }
    memory?: { guest?: string }
    resources?: { limits?: Record<string, string>; requests?: Record<string, string> }
    devices?: {
      disks?: { name: string; bootOrder?: number; disk?: { bus?: string }; cdrom?: { bus?: string } }[]
      interfaces?: { name: string; model?: string; macAddress?: string; masquerade?: unknown; bridge?: unknown }[]
      autoattachGraphicsDevice?: boolean
      autoattachSerialConsole?: boolean
    }
  }
  networks?: { name: string; pod?: unknown; multus?: { networkName: string } }[]
  volumes?: Volume[]
}

export interface VM extends Obj {
  spec: { runStrategy?: string; running?: boolean; template: { spec: MachineSpec } }
  status?: { printableStatus?: string; conditions?: Condition[]; ready?: boolean }
}

export interface VMI extends Obj {
  spec: MachineSpec
  status?: {
    phase?: string
    nodeName?: string
    conditions?: Condition[]
    interfaces?: { name?: string; ipAddress?: string; ipAddresses?: string[]; mac?: string; interfaceName?: string }[]
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
