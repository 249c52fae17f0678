// Where in a text of YAML one is, and what the API's schema says of that place. Pure; the schemas are given.

export interface Schema {
  $ref?: string
  allOf?: Schema[]
  type?: string
  description?: string
  properties?: Record<string, Schema>
  additionalProperties?: Schema | boolean
  items?: Schema
  enum?: unknown[]
  required?: string[]
  'x-kubernetes-group-version-kind'?: { group: string; version: string; kind: string }[]
}

export type Schemas = Record<string, Schema>

/** A step down: a field's name, or an element of a list. */
export type Step = string | '[]'

interface Head { indent: number; key: string; dash: boolean }

function head(line: string): Head | undefined {
  const m = /^(\s*)((?:- +)*)(-$)?(?:("(?:[^"]*)"|'[^']*'|[^\s#:"'][^:]*):(?:\s|$))?/.exec(line)
  if (!m || !line.trim() || line.trim().startsWith('#')) return undefined
  const dashes = m[2]!.length + (m[3] ? 2 : 0)
  return { indent: m[1]!.length + dashes, key: (m[4] ?? '').replace(/^["']|["']$/g, ''), dash: dashes > 0 }
}

/** The way from the root to the mapping in which a line is, its own key left out. */
export function pathAt(lines: string[], at: number): Step[] {
  const line = lines[at] ?? ''
  const own = head(line)
  let indent = own?.indent ?? line.length
  let dash = own?.dash ?? false
  const steps: Step[] = []
  for (let n = at - 1; n >= 0 && (indent > 0 || dash); n--) {
    const above = head(lines[n]!)
    if (!above) continue
    // Lists may be as far out as the key that they belong to.
    const outer = dash ? indent - 2 : indent
    if (above.dash && above.indent <= indent && !dash && above.indent === indent) {
      dash = true
      continue
    }
    if (above.key && (above.indent < outer || (dash && above.indent === outer && !above.dash))) {
      if (dash) steps.unshift('[]')
      steps.unshift(above.key)
      indent = above.indent
      dash = above.dash
    }
  }
  return steps
}

/** A schema with its references followed, a few times at most. */
export function resolve(schema: Schema | undefined, all: Schemas): Schema | undefined {
  for (let n = 0; schema && n < 8; n++) {
    if (schema.$ref) {
      const target: Schema | undefined = all[schema.$ref.split('/').pop() ?? '']
      schema = target && { ...target, description: schema.description ?? target.description }
    } else if (schema.allOf?.length && !schema.properties) {
      schema = { ...schema.allOf[0], description: schema.description ?? schema.allOf[0]?.description }
    } else return schema
  }
  return schema
}

export function find(root: Schema | undefined, path: Step[], all: Schemas): Schema | undefined {
  let at = resolve(root, all)
  for (const step of path) {
    if (!at) return undefined
    const next: Schema | undefined =
      step === '[]' ? at.items : (at.properties?.[step] ?? (typeof at.additionalProperties === 'object' ? at.additionalProperties : undefined))
    at = resolve(next, all)
  }
  return at
}

/** The schema of an object, by what its text says it is. */
export function rootOf(text: string, all: Schemas): Schema | undefined {
  const kind = /^kind:\s*["']?(\w+)/m.exec(text)?.[1]
  const version = /^apiVersion:\s*["']?([^\s"']+)/m.exec(text)?.[1]
  if (!kind || !version) return undefined
  const [group, name] = version.includes('/') ? version.split('/') : ['', version]
  return Object.values(all).find((s) => s['x-kubernetes-group-version-kind']?.some((g) => g.kind === kind && g.group === group && g.version === name))
}

/** What is inserted after a field's name. */
export function opening(schema: Schema | undefined): string {
  if (schema?.type === 'array') return ':\n'
  if (schema?.type === 'object' || schema?.properties) return ':\n'
  return ': '
}
