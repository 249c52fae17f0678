// A live copy of a kind's objects: list, then watch from the list's revision, resumed from the last revision after a break,
// listed again when the server no longer has that revision (410). Changes are shown once a frame, however many come.

import { onScopeDispose, shallowReactive, shallowRef, type ShallowRef } from 'vue'
import { ApiError, failure, json, root } from './http'
import type { Condition, Obj } from './types'

/** Objects of one page of a list. */
const PAGE = 500
/** First and longest wait before a connection is tried again, in ms. */
const RETRY_FIRST = 400
const RETRY_MAX = 10_000
/** The server ends a watch after this long, so that a dead connection is noticed. */
const WATCH_S = 290

export type Phase = 'loading' | 'live' | 'broken'

interface List<T> {
  metadata: { resourceVersion: string; continue?: string }
  items?: T[]
}

interface WatchEvent<T> {
  type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK' | 'ERROR'
  object: T & { code?: number; message?: string; reason?: string }
}

export const key = (o: Obj): string => (o.metadata.namespace ? `${o.metadata.namespace}/${o.metadata.name}` : o.metadata.name)

/** Splits a stream of bytes into lines of JSON. Pure but for the text that waits for its end. */
export class Lines {
  private rest = ''
  private readonly decoder = new TextDecoder()

  push(bytes: Uint8Array): string[] {
    const parts = (this.rest + this.decoder.decode(bytes, { stream: true })).split('\n')
    this.rest = parts.pop() ?? ''
    return parts.filter((line) => line.trim() !== '')
  }
}

/** What a wait after the nth failure in a row takes; the jitter keeps many tabs from coming at once. */
export const backoff = (failures: number, random = Math.random()): number =>
  Math.min(RETRY_MAX, RETRY_FIRST * 2 ** Math.min(failures, 10)) * (0.5 + random / 2)

export class Collection<T extends Obj> {
  /** All objects, sorted by namespace and name. A new array after every change. */
  readonly items: ShallowRef<T[]> = shallowRef([])
  readonly state = shallowReactive<{ phase: Phase; error: string }>({ phase: 'loading', error: '' })
  private readonly objects = new Map<string, T>()
  private revision = ''
  private users = 0
  private stop: AbortController | undefined
  private flushing = false
  /** Names in order; made anew when one came or went. */
  private order: string[] | undefined

  constructor(
    readonly path: string,
    private readonly onIdle: () => void = () => {},
  ) {}

  get(name: string): T | undefined {
    return this.objects.get(name)
  }

  acquire(): void {
    // Nothing that may be seen is an empty list.
    if (!this.path) this.state.phase = 'live'
    if (++this.users === 1 && this.path) {
      this.stop = new AbortController()
      void this.run(this.stop.signal)
    }
  }

  release(): void {
    // A page that follows another mostly needs the same: the watch lingers.
    setTimeout(() => {
      if (--this.users === 0) {
        this.stop?.abort()
        this.onIdle()
      }
    }, 3000)
  }

  /** Ends at once, whoever looks. */
  end(): void {
    this.stop?.abort()
  }

  private async run(signal: AbortSignal): Promise<void> {
    let failures = 0
    while (!signal.aborted) {
      try {
        if (!this.revision) await this.list(signal)
        this.state.phase = 'live'
        this.state.error = ''
        const got = await this.watch(signal)
        failures = got ? 0 : failures
        // An orderly end; at once again, unless the server ends everything at once.
        await pause(got ? 0 : backoff(failures++), signal)
      } catch (error) {
        if (signal.aborted) return
        if (error instanceof ApiError && error.code === 410) {
          this.revision = ''
          continue
        }
        this.state.phase = this.revision ? 'broken' : this.state.phase === 'live' ? 'broken' : this.state.phase
        this.state.error = error instanceof Error ? error.message : String(error)
        // Signed out, or not allowed: waiting does not help.
        if (error instanceof ApiError && (error.code === 401 || error.code === 403)) return
        await pause(backoff(failures++), signal)
      }
    }
  }

  private async list(signal: AbortSignal): Promise<void> {
    const fresh = new Map<string, T>()
    let more: string | undefined
    do {
      const query = new URLSearchParams({ limit: String(PAGE) })
      if (more) query.set('continue', more)
      const page: List<T> = await json<List<T>>(`${this.path}?${query}`, { signal, idle: true })
      for (const item of page.items ?? []) fresh.set(key(item), slim(item))
      more = page.metadata.continue || undefined
      this.revision = page.metadata.resourceVersion
    } while (more)
    this.objects.clear()
    for (const [name, item] of fresh) this.objects.set(name, item)
    this.order = undefined
    this.flush()
  }

  /** Follows the changes until the stream ends. Whether anything came. */
  private async watch(signal: AbortSignal): Promise<boolean> {
    const query = new URLSearchParams({
      watch: 'true',
      allowWatchBookmarks: 'true',
      resourceVersion: this.revision,
      timeoutSeconds: String(WATCH_S),
    })
    const response = await fetch(new URL(`${this.path}?${query}`, root), { signal, headers: { Accept: 'application/json' } })
    if (!response.ok || !response.body) throw await failure(response)
    const reader = response.body.getReader()
    const lines = new Lines()
    let any = false
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return any
      for (const line of lines.push(value)) {
        any = true
        this.apply(JSON.parse(line) as WatchEvent<T>)
      }
    }
  }

  /** Takes one event. Throws what an ERROR event says. */
  apply(event: WatchEvent<T>): void {
    const object = event.object
    switch (event.type) {
      case 'ERROR':
        throw new ApiError(object.code ?? 500, object.reason ?? '', object.message ?? 'the watch ended')
      case 'BOOKMARK':
        break
      case 'DELETED':
        this.objects.delete(key(object))
        this.order = undefined
        this.flush()
        break
      default:
        if (!this.objects.has(key(object))) this.order = undefined
        this.objects.set(key(object), slim(object))
        this.flush()
    }
    this.revision = object.metadata.resourceVersion
  }

  private flush(): void {
    if (this.flushing) return
    this.flushing = true
    // Timers also run in tabs that are not seen, frames do not. The more there is to draw, the less often.
    setTimeout(() => {
      this.flushing = false
      this.order ??= [...this.objects.keys()].sort()
      this.items.value = this.order.map((name) => this.objects.get(name)!)
    }, this.objects.size > 500 ? 250 : 30)
  }
}

/** Without the server's bookkeeping, which is half of an object and never shown. */
function slim<T extends Obj>(object: T): T {
  delete (object.metadata as { managedFields?: unknown }).managedFields
  return object
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const timer = setTimeout(done, ms)
    signal.addEventListener('abort', () => (clearTimeout(timer), done()), { once: true })
  })
}

const open = new Map<string, Collection<Obj>>()

/** The live objects below a path, shared by all who look at them, for as long as the component lives. */
export function live<T extends Obj>(path: string): Collection<T> {
  let found = open.get(path) as Collection<T> | undefined
  if (!found) {
    found = new Collection<T>(path, () => open.delete(path))
    open.set(path, found as unknown as Collection<Obj>)
  }
  const collection = found
  collection.acquire()
  onScopeDispose(() => collection.release())
  return collection
}

/** Whether any of the open watches has lost its connection. */
export const brokenWatches = (): boolean => [...open.values()].some((c) => c.state.phase === 'broken')

/** Forgets everything: somebody else signs in. */
export function forget(): void {
  for (const collection of open.values()) collection.end()
  open.clear()
}

export const condition = (conditions: Condition[] | undefined, type: string): Condition | undefined =>
  conditions?.find((c) => c.type === type)
