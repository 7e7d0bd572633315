/**
 * Observers are notified of events when they happen. Each source folder has a type for its events. The log and the
 * events of pods implement `Observer`; the code that notifies does not know them.
 */

export interface Observer<Event> {
	/** Called during the work that the event is about: returns at once and never throws. */
	readonly notify: (event: Event) => void;
}

/** Each kind of event without the named fields, which are added later. */
export type Without<Event, Names extends PropertyKey> = Event extends unknown ? Omit<Event, Names> : never;

/** Ignores all events. */
export const noObserver: Observer<unknown> = {notify: () => undefined};

/** Notifies all observers in order. If one throws, the others and the work continue. */
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
