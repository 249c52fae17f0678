// The API's own schemas (OpenAPI v3), fetched when an editor asks, one group and version at a time, and kept.
import { json } from './http'
import type { Schemas } from '@/model/schema'

const kept = new Map<string, Promise<Schemas>>()

async function fetchSchemas(place: string): Promise<Schemas> {
  const index = await json<{ paths: Record<string, { serverRelativeURL: string }> }>('openapi/v3', { idle: true })
  const url = index.paths[place]?.serverRelativeURL
  if (!url) return {}
  const found = await json<{ components?: { schemas?: Schemas } }>(url.replace(/^\//, ''), { idle: true })
  return found.components?.schemas ?? {}
}

/** The schemas of an `apiVersion`; none where they cannot be had, which only costs the completion. */
export function schemas(apiVersion: string): Promise<Schemas> {
  const place = apiVersion.includes('/') ? `apis/${apiVersion}` : `api/${apiVersion}`
  let found = kept.get(place)
  if (!found) {
    found = fetchSchemas(place).catch(() => {
      kept.delete(place)
      return {}
    })
    kept.set(place, found)
  }
  return found
}
