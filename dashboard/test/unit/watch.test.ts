import { afterEach, describe, expect, it, vi } from 'vitest'
import { backoff, Collection, Lines } from '@/api/watch'
import type { Obj } from '@/api/types'

const object = (name: string, revision: string): Obj => ({ metadata: { name, namespace: 'a', uid: name, resourceVersion: revision } })
const names = (c: Collection<Obj>): string[] => c.items.value.map((o) => `${o.metadata.name}@${o.metadata.resourceVersion}`)

/** A server that answers lists and watches in turn, and remembers what it was asked. */
function server(...answers: (() => Response)[]): string[] {
  const asked: string[] = []
  vi.stubGlobal('fetch', (url: URL, options: { signal?: AbortSignal }) => {
    asked.push(url.search)
    const next = answers.shift()
    if (next) return Promise.resolve(next())
    return new Promise((_, refuse) => options.signal?.addEventListener('abort', () => refuse(new Error('aborted'))))
  })
  return asked
}
const json = (value: unknown, status = 200) => () => new Response(JSON.stringify(value), { status })
const list = (revision: string, items: Obj[], more?: string) => json({ metadata: { resourceVersion: revision, continue: more }, items })
const lines = (...events: unknown[]) => () => new Response(events.map((e) => `${JSON.stringify(e)}\n`).join(''))

afterEach(() => vi.unstubAllGlobals())

describe('a live collection', () => {
  it('lists in pages, follows, and resumes from the last revision', async () => {
    const asked = server(
      list('5', [object('x', '1')], 'next'),
      list('5', [object('y', '2')]),
      lines({ type: 'MODIFIED', object: object('x', '6') }, { type: 'DELETED', object: object('y', '7') }, { type: 'BOOKMARK', object: { metadata: { resourceVersion: '9' } } }),
    )
    const c = new Collection<Obj>('api/v1/things')
    c.acquire()
    await vi.waitFor(() => expect(asked).toHaveLength(4))
    await vi.waitFor(() => expect(names(c)).toEqual(['x@6']))
    expect(asked[1]).toContain('continue=next')
    expect(asked[2]).toContain('resourceVersion=5')
    expect(asked[3]).toContain('resourceVersion=9')
    expect(c.state.phase).toBe('live')
    c.release()
  })

  it.each([
    ['as an answer', json({ code: 410, reason: 'Expired' }, 410)],
    ['as an event', lines({ type: 'ERROR', object: { code: 410, reason: 'Expired' } })],
  ])('lists anew when its revision is gone (%s)', async (_, gone) => {
    const asked = server(list('5', [object('x', '1')]), gone, list('8', [object('z', '8')]))
    const c = new Collection<Obj>('api/v1/things')
    c.acquire()
    await vi.waitFor(() => expect(asked).toHaveLength(4))
    await vi.waitFor(() => expect(names(c)).toEqual(['z@8']))
    expect(asked[3]).toContain('resourceVersion=8')
    c.release()
  })

  it('keeps what it has while the server is away', async () => {
    const asked = server(list('5', [object('x', '1')]), json({ message: 'starting' }, 503), lines({ type: 'ADDED', object: object('y', '6') }))
    const c = new Collection<Obj>('api/v1/things')
    c.acquire()
    await vi.waitFor(() => expect(c.state.phase).toBe('broken'))
    expect(c.get('a/x')).toBeDefined()
    await vi.waitFor(() => expect(names(c)).toEqual(['x@1', 'y@6']), 3000)
    expect(asked[2]).toContain('resourceVersion=5')
    c.release()
  })
})

it('lines are split wherever the bytes were cut', () => {
  const bytes = new TextEncoder().encode('{"a":"ä"}\n{"b":1}\n')
  for (let at = 0; at <= bytes.length; at++) {
    const l = new Lines()
    expect([...l.push(bytes.slice(0, at)), ...l.push(bytes.slice(at))]).toEqual(['{"a":"ä"}', '{"b":1}'])
  }
})

it('waits grow and end', () => {
  expect(backoff(0, 1)).toBe(400)
  expect(backoff(3, 1)).toBe(3200)
  expect(backoff(1000, 1)).toBe(10_000)
  expect(backoff(1000, 0)).toBe(5_000)
})
