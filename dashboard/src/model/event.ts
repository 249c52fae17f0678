// What an event is about, and when: the two kinds of events put both in other fields. Pure.
import type { Event } from '@/api/types'
export const at = (e: Event): string => e.lastTimestamp ?? e.eventTime ?? e.firstTimestamp ?? e.metadata.creationTimestamp ?? ''
export const subject = (e: Event): NonNullable<Event['involvedObject']> => e.involvedObject ?? e.regarding ?? {}
