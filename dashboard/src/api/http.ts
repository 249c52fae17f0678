// Requests to the API: paths below any prefix, the CSRF header of the session, failures as the API tells them.

/** The server's root, wherever a proxy has put it: the page is one level below. */
export const root = new URL('../', document.baseURI)

/** One field's complaint, as `Status.details.causes` has it. */
export interface Cause {
  field?: string
  message?: string
  reason?: string
}

/** A failure that the API answered, or a server that did not answer (code 0). */
export class ApiError extends Error {
  constructor(
    readonly code: number,
    readonly reason: string,
    message: string,
    readonly causes: Cause[] = [],
  ) {
    super(message)
    this.name = 'ApiError'
  }

  /** The complaints about a field or what is below it, in one line. */
  at(...fields: string[]): string {
    const found = this.causes.filter((c) => c.field && fields.some((f) => c.field === f || c.field!.startsWith(`${f}.`) || c.field!.startsWith(`${f}[`)))
    return found.map((c) => c.message ?? '').join('; ')
  }
}

function cookie(name: string): string {
  const pair = document.cookie.split('; ').find((c) => c.startsWith(`${name}=`))
  return pair ? decodeURIComponent(pair.slice(name.length + 1)) : ''
}

/** What every unsafe request carries, so that no other page can make it. */
export const csrf = (): Record<string, string> => ({ 'X-Sheaf-CSRF': cookie('sheaf_csrf') })

/** Called when the API says that nobody is signed in. */
export const onSignedOut: { handler: () => void } = { handler: () => {} }

export interface Options {
  method?: string
  body?: unknown
  /** The body's type, where it is not JSON; the body is then sent as it is. */
  type?: string
  accept?: string
  signal?: AbortSignal
  /** Nobody asked for it: it does not keep the session open. */
  idle?: boolean
}

/** Sends a request and gives its answer; throws an ApiError for what is no success. */
export async function send(path: string, options: Options = {}): Promise<Response> {
  const method = options.method ?? 'GET'
  const headers: Record<string, string> = { Accept: options.accept ?? 'application/json' }
  let body: BodyInit | undefined
  if (options.body !== undefined) {
    headers['Content-Type'] = options.type ?? 'application/json'
    body = options.type && typeof options.body === 'string' ? options.body : JSON.stringify(options.body)
  }
  if (method !== 'GET') Object.assign(headers, csrf())
  if (options.idle) headers['X-Sheaf-Idle'] = '1'
  let response: Response
  try {
    response = await fetch(new URL(path, root), { method, headers, body, signal: options.signal, credentials: 'same-origin' })
  } catch (error) {
    if (options.signal?.aborted) throw error
    throw new ApiError(0, 'Unreachable', 'The server does not answer.')
  }
  if (response.ok) return response
  throw await failure(response)
}

/** The failure that an answer tells of. */
export async function failure(response: Response): Promise<ApiError> {
  if (response.status === 401 && !response.url.includes('/v1/auth/')) onSignedOut.handler()
  const text = await response.text().catch(() => '')
  return readFailure(response.status, text, response.statusText)
}

export function readFailure(code: number, text: string, otherwise: string): ApiError {
  try {
    const status = JSON.parse(text) as { reason?: string; message?: string; details?: { causes?: Cause[] } }
    return new ApiError(code, status.reason ?? '', status.message || otherwise, status.details?.causes ?? [])
  } catch {
    return new ApiError(code, '', text.slice(0, 300) || otherwise || `HTTP ${code}`)
  }
}

/** The same, with the answer read as JSON. */
export async function json<T>(path: string, options: Options = {}): Promise<T> {
  return (await send(path, options)).json() as Promise<T>
}

/** The address of a WebSocket, with a ticket that opens it once. */
export async function socket(path: string): Promise<string> {
  const { ticket } = await json<{ ticket: string }>('v1/auth/ticket', { method: 'POST', body: { path: `/${path}` } })
  const url = new URL(`${path}?ticket=${ticket}`, root)
  url.protocol = url.protocol === 'http:' ? 'ws:' : 'wss:'
  return url.href
}
