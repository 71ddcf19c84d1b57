import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.stream.IntStream;

/** Sends a JSON body sixteen times at once, as Java's client does unless it is told otherwise. */
public class Ask {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient(); // it asks for HTTP/2 by an upgrade
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(arguments[1]))
            .build();
        List<CompletableFuture<HttpResponse<String>>> answers = IntStream.range(0, 16)
            .mapToObj(i -> client.sendAsync(request, HttpResponse.BodyHandlers.ofString()))
            .toList();
        for (var answer : answers) {
            System.out.println(answer.get().statusCode() + " " + answer.get().body());
        }
    }
}
