// What RBAC lets the signed-in user do, so that what is forbidden is not offered. The API decides all the same.

import { shallowReactive } from 'vue'
import { json } from './http'
import type { Kind } from './kinds'

export interface Rule {
  verbs: string[]
  apiGroups?: string[]
  resources?: string[]
  resourceNames?: string[]
}

/** No namespace has this name: what is allowed in it is allowed everywhere. */
const EVERYWHERE = 'sheaf-everywhere'
/** Namespaces whose rules are kept. */
const KEPT = 500

const reviews = shallowReactive(new Map<string, Rule[] | undefined>())

/** Whether rules allow something. Pure. */
export function allows(rules: Rule[], verb: string, group: string, resource: string, name = ''): boolean {
  const has = (list: string[] | undefined, value: string): boolean => !!list?.some((v) => v === '*' || v === value)
  const [, sub] = resource.split('/')
  return rules.some(
    (r) =>
      has(r.verbs, verb) &&
      has(r.apiGroups, group) &&
      (has(r.resources, resource) || (!!sub && has(r.resources, `*/${sub}`))) &&
      (!r.resourceNames?.length || (!!name && r.resourceNames.includes(name))),
  )
}

async function review(namespace: string): Promise<void> {
  const body = { apiVersion: 'authorization.k8s.io/v1', kind: 'SelfSubjectRulesReview', spec: { namespace } }
  const answer = await json<{ status?: { resourceRules?: Rule[] } }>('apis/authorization.k8s.io/v1/selfsubjectrulesreviews', { method: 'POST', body, idle: true })
  if (reviews.size >= KEPT) reviews.clear()
  reviews.set(namespace, answer.status?.resourceRules ?? [])
}

function rules(namespace: string): Rule[] {
  if (!reviews.has(namespace)) {
    reviews.set(namespace, undefined)
    // Without an answer nothing is offered; it is asked again when the page is opened anew.
    void review(namespace).catch(() => reviews.delete(namespace))
  }
  return reviews.get(namespace) ?? []
}

/** After signing in: what is allowed everywhere is known before the first page asks. */
export async function loadAccess(): Promise<void> {
  reviews.clear()
  await review(EVERYWHERE)
}

export const group = (kind: Kind): string => (kind.base.startsWith('apis/') ? (kind.base.split('/')[1] ?? '') : '')

/** Whether something may be done to a kind's objects (of a namespace). `sub` is a subresource. */
export function can(verb: string, kind: Kind, namespace = '', sub = '', name = ''): boolean {
  const resource = sub ? `${kind.plural}/${sub}` : kind.plural
  return (
    allows(rules(EVERYWHERE), verb, group(kind), resource, name) ||
    (kind.namespaced && !!namespace && allows(rules(namespace), verb, group(kind), resource, name))
  )
}

/** The same for what is done to machines by way of subresources.kubevirt.io. */
export function canAct(action: string, namespace: string, plural = 'virtualmachines'): boolean {
  const kind: Kind = { base: 'apis/subresources.kubevirt.io/v1', plural, namespaced: true, kind: '' }
  const verb = ['console', 'vnc', 'guestosinfo'].includes(action) ? 'get' : 'update'
  return can(verb, kind, namespace, action)
}
