/**
 * The definitions and handlers of a server. Types only. They are compatible with the definitions of @grpc/proto-loader,
 * so that one registration can serve ttrpc and gRPC.
 */

export interface MethodDefinition {
	/** `/package.Service/Method`. */
	readonly path: string;
	/** Streaming methods are not served over ttrpc: UNIMPLEMENTED. */
	readonly requestStream?: boolean;
	readonly responseStream?: boolean;
	readonly requestDeserialize: (bytes: Buffer) => object;
	readonly responseSerialize: (value: object) => Buffer;
}

/** By the names of the methods. */
export type ServiceDefinition = Readonly<Record<string, MethodDefinition>>;

export interface CallContext {
	/** Aborts when the deadline passes, the connection ends, or the server closes; never because the call succeeded. */
	readonly signal: AbortSignal;
	/** With its package. */
	readonly service: string;
	readonly method: string;
	/** The remaining time until the deadline of the caller when the call arrived; undefined if it has none. */
	readonly timeoutMs: number | undefined;
	/** As sent; the values of a key in their order. */
	readonly metadata: ReadonlyMap<string, readonly string[]>;
}

/**
 * Answers one call. An error becomes the status of the call. `never`: a handler of any request type is accepted,
 * because the definition beside it determines the type.
 */
export type Handler = (request: never, context: CallContext) => Promise<object>;

/** A method of the definition that has no handler is UNIMPLEMENTED. */
export interface Service {
	readonly definition: ServiceDefinition;
	/** By the method names in the definition. */
	readonly handlers: Readonly<Record<string, Handler>>;
}

/** A method that can be called. */
export interface Route {
	readonly definition: MethodDefinition;
	readonly handler: Handler;
}
