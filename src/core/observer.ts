/**
 * What happens is told to an observer at the moment it happens. Each source folder has a type for its events; whoever
 * wants to know (the log, the events of pods) implements `Observer`. The code that notifies knows none of them.
 */

export interface Observer<Event> {
	/** Called in the middle of the work that the event is about: returns at once and never throws. */
	readonly notify: (event: Event) => void;
}

/** Each kind of event without what is the same for all of them, which is added on the way. */
export type Without<Event, Names extends PropertyKey> = Event extends unknown ? Omit<Event, Names> : never;

/** Nobody wants to know. */
export const noObserver: Observer<unknown> = {notify: () => undefined};

/** Notifies each in turn. One that throws all the same stops neither the others nor the work. */
export function allOf<Event>(
	observers: ReadonlyArray<Observer<Event>>,
	onError: (error: unknown) => void,
): Observer<Event> {
	return {
		notify(event) {
			for (const observer of observers) {
				try {
					observer.notify(event);
				} catch (error) {
					onError(error);
				}
			}
		},
	};
}
